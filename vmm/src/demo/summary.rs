//! What the demo showed.

use control::output::Output;
use control::units::{human_bytes, human_ms};
use machine::probe::Tick;
use migration::progress::Report;
use serde_json::json;

use crate::cli::downtime_parts;

/// Both sides of the story: the engine's and the guest's.
pub(super) struct Summary<'a> {
    pub report: &'a Report,
    /// The guest's last tick, at the destination.
    pub guest: Tick,
    /// Its largest gap before the move: what it sees anyway.
    pub usual_gap_us: u64,
    /// Where it had a disk: whether both images hold the same of what the guest did not write.
    pub disk_is_alike: Option<bool>,
}

impl Summary<'_> {
    /// Whether nothing was lost.
    pub fn is_sound(&self) -> bool {
        self.report.verified && self.guest.faults == 0 && self.disk_is_alike != Some(false)
    }

    pub fn print(&self, output: Output) {
        let Self {
            report,
            guest,
            usual_gap_us,
            disk_is_alike,
        } = self;
        output.object(&json!({
            "event": "demo",
            "status": if self.is_sound() { "completed" } else { "failed" },
            "total_ms": report.total_ms,
            "downtime_ms": report.downtime_ms,
            "guest_gap_us": guest.max_gap_us,
            "guest_usual_gap_us": usual_gap_us,
            "ledger_pages": guest.ledger_pages,
            "ledger_verified": guest.ledger_verified,
            "fill_verified": guest.fill_verified,
            "faults": guest.faults,
            "verified": report.verified,
            "disks": report.disks,
            "blocks_verified": guest.blocks_verified,
            "disk_is_alike": disk_is_alike,
        }));
        if output.is_json() {
            return;
        }
        let gap_ms = guest.max_gap_us as f64 / 1000.0;
        let passes = report.passes().unwrap_or_default();
        output.line("");
        row(
            output,
            "total",
            &human_ms(report.total_ms),
            &format!("of which {} were set-up", human_ms(report.setup_ms)),
        );
        if let (Some(downtime), Some(forecast)) = (report.downtime_ms, report.forecast_downtime_ms)
        {
            row(
                output,
                "downtime",
                &human_ms(downtime),
                &format!("forecast {}", human_ms(forecast)),
            );
        }
        for (part, ms) in downtime_parts(&report.downtime) {
            row(output, &format!("  {part}"), &human_ms(ms), "");
        }
        row(
            output,
            "guest saw",
            &human_ms(gap_ms),
            &format!(
                "its largest gap between two steps; {} before the move",
                human_ms(*usual_gap_us as f64 / 1000.0)
            ),
        );
        row(
            output,
            "on the wire",
            &human_bytes(report.wire_bytes as f64),
            &format!(
                "for {} of guest memory, in {passes} passes",
                human_bytes(report.guest_bytes as f64)
            ),
        );
        for (encoding, count) in &report.encodings {
            row(
                output,
                &format!("  {encoding}"),
                &human_bytes(count.bytes as f64),
                &format!("{} pages", count.pages),
            );
        }
        if let Some(disks) = &report.disks {
            row(
                output,
                "  disk",
                &human_bytes(disks.bytes as f64),
                &format!(
                    "{} of zeroes did not travel",
                    human_bytes(disks.zero_bytes as f64)
                ),
            );
        }
        row(
            output,
            "digests",
            if report.verified { "equal" } else { "DIFFER" },
            "of the memory as sent and as placed",
        );
        row(
            output,
            "ledger",
            if guest.faults == 0 {
                "intact"
            } else {
                "DAMAGED"
            },
            &format!(
                "{} pages verified again by the guest at its new host, {} faults",
                guest.ledger_pages, guest.faults
            ),
        );
        if let Some(is_alike) = disk_is_alike {
            row(
                output,
                "disk",
                if *is_alike { "intact" } else { "DAMAGED" },
                &format!(
                    "{} blocks verified by the guest, the rest is the same in both images",
                    guest.blocks_verified
                ),
            );
        }
    }
}

fn row(output: Output, what: &str, value: &str, note: &str) {
    output.line(format!("  {what:14}{value:>10}  {note}").trim_end());
}
