//! The tracker's share of a write, with how sure it is.

use serde::Serialize;

use super::super::goal::{Bound, Goal};
use super::super::stats::Samples;
use super::super::table::Table;
use super::super::unit::Unit;

/// What tracking costs a write. Field names are a stable contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrackingFigures {
    /// Bytes of a write.
    pub request_bytes: u64,
    /// Writes of each half of a pair.
    pub requests: u64,
    /// CPU microseconds of a write without the tracker, of each pair.
    pub plain_cpu_us: Samples,
    /// The same with it.
    pub tracked_cpu_us: Samples,
    /// The mean over the pairs of CPU time with the tracker over that without, less one.
    pub share: f64,
    /// Lower end of the interval that holds the true share in 95 of 100 such runs.
    pub share_low: f64,
    /// Its upper end.
    pub share_high: f64,
}

impl TrackingFigures {
    /// The name of the scenario.
    pub(crate) const NAME: &str = "disk-tracking";

    /// Sums up pairs of CPU microseconds of a write, without and with the tracker; `None` of fewer than two.
    pub(crate) fn new(request_bytes: u64, requests: u64, pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios: Vec<_> = pairs
            .iter()
            .map(|(plain, tracked)| tracked / plain)
            .collect();
        let (mean, margin) = interval(&ratios)?;
        Some(Self {
            request_bytes,
            requests,
            plain_cpu_us: Samples::of(pairs, |pair| pair.0)?,
            tracked_cpu_us: Samples::of(pairs, |pair| pair.1)?,
            share: mean - 1.0,
            share_low: mean - margin - 1.0,
            share_high: mean + margin - 1.0,
        })
    }

    /// What was done, in a line.
    pub(crate) fn title(&self) -> String {
        format!(
            "{}: random writes of {} bytes to an image in the page cache, {} pairs of {} writes each way",
            Self::NAME,
            self.request_bytes,
            self.plain_cpu_us.values.len(),
            self.requests
        )
    }

    /// The table for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new(&["", "CPU a write", "min", "max", "share", "95 % interval"]);
        let micros = |samples: &Samples| {
            [samples.median, samples.min, samples.max].map(|us| format!("{us:.3} us"))
        };
        let row = |name: &str, samples, share: String, interval: String| {
            let mut cells = vec![name.to_owned()];
            cells.extend(micros(samples));
            cells.extend([share, interval]);
            cells
        };
        let percent = |share: f64| format!("{:+.2} %", share * 100.0);
        let none = || "-".to_owned();
        table.row(row(
            "without the tracker",
            &self.plain_cpu_us,
            none(),
            none(),
        ));
        table.row(row(
            "with the tracker",
            &self.tracked_cpu_us,
            percent(self.share),
            format!(
                "{} to {}",
                percent(self.share_low),
                percent(self.share_high)
            ),
        ));
        table
    }

    /// What these are to reach: it is reached when the whole interval reaches it.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        vec![Goal::new(
            Self::NAME,
            "ratio_high",
            1.0 + self.share_high,
            Bound::AtMost,
            1.01,
            Unit::FineRatio,
        )]
    }
}

/// The mean of values, and how far on either side of it the true one lies in 95 of 100 runs (Student's
/// t); `None` of fewer than two.
fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let freedom = count - 1.0;
    if freedom < 1.0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / freedom;
    Some((mean, quantile(freedom) * (variance / count).sqrt()))
}

/// The 97.5 per cent quantile of Student's t, by its expansion around that of the normal distribution
/// (Abramowitz and Stegun, 26.7.5); right to a thousandth from 10 degrees of freedom on.
fn quantile(freedom: f64) -> f64 {
    let z: f64 = 1.959_964;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // Tables of the distribution.
        for (freedom, wanted) in [
            (10.0, 2.2281),
            (19.0, 2.0930),
            (39.0, 2.0227),
            (1e9, 1.9600),
        ] {
            let found = quantile(freedom);
            assert!((found - wanted).abs() < 1e-3, "{freedom}: {found}");
        }
        let (mean, margin) =
            interval(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]).unwrap();
        assert!((mean - 6.0).abs() < 1e-9);
        assert!((margin - 2.2281).abs() < 1e-2, "{margin}");
        assert_eq!(interval(&[1.0]), None);
    }

    #[test]
    fn a_share_that_is_not_sure_enough_reaches_nothing() {
        let of = |ratios: [f64; 4]| {
            let pairs: Vec<_> = ratios.iter().map(|ratio| (2.0, 2.0 * ratio)).collect();
            TrackingFigures::new(4096, 1, &pairs).unwrap()
        };
        let sure = of([1.004, 1.005, 1.005, 1.006]);
        assert!((sure.share - 0.005).abs() < 1e-9, "{sure:?}");
        assert!(sure.goals()[0].reached, "{sure:?}");
        let unsure = of([0.95, 1.06, 0.96, 1.05]);
        assert!((unsure.share - 0.005).abs() < 1e-9, "{unsure:?}");
        assert!(unsure.share_low < 0.0 && !unsure.goals()[0].reached);
        assert!(sure.table().text().contains("+0.50 %"));
    }
}
