//! What the user of a guest that does not get away is warned of.

use super::costs::Costs;
use super::course::{Course, milliseconds};
use super::moving::Moving;
use crate::convergence::{Forecast, Observed};
use crate::observation::{Observation, Side};
use crate::progress::{Limits, Phase};
use crate::vm::RunState;

/// Passes that do not converge before the user is warned.
const WARN_AFTER: u32 = 3;

/// Of what the user was warned.
#[derive(Default)]
pub(super) struct Warnings {
    /// Passes in a row that brought the end no nearer.
    stuck: u32,
    /// Limits that were said to be too strict.
    too_strict: Option<Limits>,
}

impl Warnings {
    /// Warns of a limit that cannot be kept, however little is left to send.
    pub fn before_pass(&mut self, moving: &Moving<'_, '_, '_>) {
        let limits = moving.limits();
        let costs = moving.transfer.costs.without_flush();
        let is_down_anyway = moving.course.vm.run_state() == RunState::Paused;
        if costs.total() > limits.downtime && !is_down_anyway {
            self.warn_limit(moving.course, &costs, limits);
        }
    }

    /// A pass has brought the end nearer.
    pub fn nearer(&mut self) {
        self.stuck = 0;
    }

    /// A pass has not: warns when that has happened a few times.
    pub fn no_nearer(
        &mut self,
        moving: &Moving<'_, '_, '_>,
        observed: &Observed,
        forecast: Forecast,
        limits: Limits,
    ) {
        self.stuck += 1;
        if self.stuck < WARN_AFTER {
            return;
        }
        let (course, costs) = (&*moving.course, &moving.transfer.costs);
        if observed.run_state == RunState::Running && costs.total() > limits.downtime {
            return self.warn_limit(course, costs, limits);
        }
        if !self.is_news(limits) {
            return;
        }
        let mib = f64::from(1 << 20);
        warn(
            course,
            "migration.not-converging",
            format!(
                "the guest dirties {:.0} MiB/s, {:.0} MiB/s reach the destination: stopped now it \
                 would be down for {:.0} ms, the limit is {:.0} ms",
                observed.dirty_rate / mib,
                observed.bandwidth / mib,
                milliseconds(forecast.downtime),
                milliseconds(limits.downtime),
            ),
        );
    }

    fn warn_limit(&mut self, course: &Course<'_>, costs: &Costs, limits: Limits) {
        if !self.is_news(limits) {
            return;
        }
        let enough = (milliseconds(costs.total()) * 1.5).ceil().max(1.0);
        warn(
            course,
            "migration.limit-too-strict",
            format!(
                "with nothing left to send the guest would be down for {:.1} ms ({}), and the limit is \
                 {:.1} ms: it is not stopped unless that is raised, as by --set downtime-limit={enough}ms",
                milliseconds(costs.total()),
                costs.describe(),
                milliseconds(limits.downtime),
            ),
        );
    }

    /// Whether nothing was said of these limits yet.
    fn is_news(&mut self, limits: Limits) -> bool {
        self.too_strict.replace(limits) != Some(limits)
    }
}

fn warn(course: &Course<'_>, id: &str, message: String) {
    let observation = Observation::new(Side::Source, id, message);
    course
        .steering
        .warn(observation.in_phase(Phase::Precopy.name()));
}
