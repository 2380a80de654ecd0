//! Limits of a job, as they are written on the command line.

use control::units::{Rate, Span};
use machine::config::set_once;
use migration::progress::LimitChange;

/// Limits, and the disk whose move they are for, where it is named.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DiskLimits {
    pub disk: Option<String>,
    pub limits: LimitChange,
}

/// `[ID,]LIMITS`
pub(super) fn parse_disk_limits(text: &str) -> Result<DiskLimits, String> {
    let (first, rest) = match text.split_once(',') {
        Some((first, rest)) => (first, Some(rest)),
        None => (text, None),
    };
    if first.contains('=') {
        let limits = parse_limits(text)?;
        return Ok(DiskLimits { disk: None, limits });
    }
    // No limit is written so: it is the identity of a disk.
    match (first, rest) {
        ("", _) => Err("it begins with a comma: ID,LIMITS or LIMITS are what can be said".into()),
        (_, None) => Err(format!(
            "no limit is named for {first:?}: downtime-limit=TIME, bandwidth=RATE and writes=RATE are"
        )),
        (disk, Some(rest)) => Ok(DiskLimits {
            disk: Some(disk.into()),
            limits: parse_limits(rest)?,
        }),
    }
}

/// `[ID,]LIMITS` of a migration, of which a disk has one of its own.
pub(super) fn parse_migration_limits(text: &str) -> Result<LimitChange, String> {
    let DiskLimits { disk, limits } = parse_disk_limits(text)?;
    Ok(LimitChange { disk, ..limits })
}

pub(super) fn parse_limits(text: &str) -> Result<LimitChange, String> {
    let mut change = LimitChange::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("downtime-limit", time)) => {
                let time: Span = time.parse().map_err(|e| format!("downtime-limit: {e}"))?;
                set_once(&mut change.downtime_limit, "downtime-limit", time)?;
            }
            Some(("writes", rate)) => {
                let rate: Rate = rate.parse().map_err(|e| format!("writes: {e}"))?;
                set_once(&mut change.writes, "writes", rate)?;
            }
            Some(("bandwidth", rate)) => {
                let rate: Rate = rate.parse().map_err(|e| format!("bandwidth: {e}"))?;
                set_once(&mut change.bandwidth, "bandwidth", rate)?;
            }
            _ => {
                return Err(format!(
                    "{part:?} is not a limit: downtime-limit=TIME, bandwidth=RATE and writes=RATE are"
                ));
            }
        }
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_move_may_name_its_disk_first() {
        let rate = |rate| LimitChange {
            bandwidth: Some(Rate(Some(rate))),
            ..LimitChange::default()
        };
        for (text, disk, bandwidth) in [
            ("bandwidth=7KiB/s", None, 7 << 10),
            ("data,bandwidth=7KiB/s", Some("data"), 7 << 10),
            ("bandwidth,bandwidth=7KiB/s", Some("bandwidth"), 7 << 10),
        ] {
            let read = parse_disk_limits(text).unwrap();
            assert_eq!(read.disk.as_deref(), disk, "{text}");
            assert_eq!(read.limits, rate(bandwidth), "{text}");
        }
        for (text, named) in [
            ("", "comma"),
            (",bandwidth=7", "comma"),
            ("data", "no limit"),
            ("data,", "\"\""),
            ("data,writes=7,writes=8", "writes"),
            ("data,reads=7", "reads"),
            ("data,bandwidth=7KiB/s,other", "other"),
            ("data,bandwidth=7KiB/s,bandwidth=8KiB/s", "bandwidth"),
            ("data,bandwidth=much", "bandwidth"),
        ] {
            let refused = parse_disk_limits(text).unwrap_err();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }
}
