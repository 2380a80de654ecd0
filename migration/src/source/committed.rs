//! The guest runs at its destination.

use std::thread;
use std::time::Duration;

use super::course::{Course, End};
use super::link::Link;
use crate::observation::Observation;
use crate::progress::Phase;
use crate::vm::SourceVm;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{MAX_WARNINGS, Message};

/// Pauses before each look for packets that have come for a guest that is gone.
const LOOKS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(20),
];

/// A guest that is the destination's, for good.
pub(super) struct Committed<'m, 's, 'a> {
    /// `None` where it was lost and the destination had to be asked.
    link: Option<Link<'s>>,
    course: &'m mut Course<'a>,
}

impl<'m, 's, 'a> Committed<'m, 's, 'a> {
    /// The destination has said so, and what went wrong as the guest was started.
    pub fn with(
        link: Link<'s>,
        course: &'m mut Course<'a>,
        mut warnings: Vec<Observation>,
    ) -> Self {
        warnings.truncate(MAX_WARNINGS);
        for warning in &warnings {
            course.steering.warn(warning.clone());
        }
        course.report.warnings = warnings;
        Self {
            link: Some(link),
            course,
        }
    }

    /// The destination has said so when it was asked.
    pub fn without_link(course: &'m mut Course<'a>) -> Self {
        Self { link: None, course }
    }

    /// Sends after the guest what came for it here, and lets go of it.
    pub fn finish(self) -> End {
        let Self { link, course } = self;
        if let Some(link) = link {
            forward_packets(&link, course.vm);
            // The destination knows that already by its own start; it waits only for politeness.
            let _ = link.session.send(&Message::Finish);
            course.enter(Phase::Finish);
        }
        let_go(course.vm);
        End::Completed
    }
}

/// Sends after the guest what has come for it here since it was stopped. Networks need a moment
/// until they send it all to the destination, and whoever sent it waits.
fn forward_packets(link: &Link<'_>, vm: &dyn SourceVm) {
    if !link.agreed.has(Capabilities::FORWARDED_PACKETS) {
        return;
    }
    for pause in LOOKS {
        thread::sleep(pause);
        match vm.packets_to_forward() {
            Some(packets) if packets.is_empty() => {}
            Some(packets) => {
                if link.session.send(&Message::Forwarded(packets)).is_err() {
                    return;
                }
            }
            None => return,
        }
    }
}

/// The guest runs elsewhere with all that is its: nothing of it is needed here.
pub(super) fn let_go(vm: &dyn SourceVm) {
    vm.hand_over_disks();
    vm.release_memory();
}
