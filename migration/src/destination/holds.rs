//! What has to be undone if the guest stays at its source.

use super::course::Course;
use super::taken::Aftermath;
use crate::error::Error;
use crate::id::MigrationId;
use crate::journal::Decision;
use crate::observation::Side;
use crate::undo::{Failures, Undo};
use crate::vm::{DestinationVm, MachineDescription};

/// What is undone if the guest stays at its source, in the order of the fields.
pub(super) struct Holds<'a> {
    /// The source was told that everything is ready, so that its commit may come: that is given up.
    offer: Option<Undo<'a>>,
    pub machine: Machine<'a>,
    /// The journal has room for the decision.
    record: Option<Undo<'a>>,
}

impl<'a> Holds<'a> {
    /// Nothing is done yet.
    pub fn nothing(vm: &'a mut dyn DestinationVm, failures: &Failures) -> Self {
        Self {
            offer: None,
            machine: Machine {
                vm,
                stage: Stage::Untouched,
                failures: failures.clone(),
            },
            record: None,
        }
    }

    /// The journal is about to make room for the decision.
    pub fn reserve(&mut self, course: &Course<'a>) {
        let (journal, id) = (course.journal, course.id);
        self.record = Some(course.undone_by(move || {
            if let Err(error) = journal.discard(id, Side::Destination) {
                // A blank record says the same as none.
                tracing::debug!("{}", error);
            }
            Ok(())
        }));
    }

    /// The source is about to be told that everything is ready.
    pub fn offer(&mut self, course: &Course<'a>) {
        let (journal, id) = (course.journal, course.id);
        self.offer = Some(course.undone_by(move || {
            journal.decide(id, Decision::GiveUp)?;
            Ok(())
        }));
    }

    /// What is left to be done for migration `id` if it fails now.
    pub fn aftermath(&self, id: MigrationId) -> Aftermath {
        match (&self.offer, self.machine.stage) {
            (Some(_), _) => Aftermath::InDoubt(id),
            (None, Stage::Built) => Aftermath::BuiltInVain,
            (None, _) => Aftermath::Nothing,
        }
    }

    /// The guest is here, for good.
    pub fn keep(self) -> Machine<'a> {
        let Self {
            offer,
            mut machine,
            record,
        } = self;
        [offer, record].into_iter().flatten().for_each(Undo::keep);
        machine.stage = Stage::Kept;
        machine
    }
}

/// How far a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Untouched,
    /// Perhaps half-way.
    Building,
    Built,
    /// It has the guest.
    Kept,
}

/// The VM that takes the guest in. Dropping it abandons what was built in it, unless that has the guest.
pub(super) struct Machine<'a> {
    pub vm: &'a mut dyn DestinationVm,
    stage: Stage,
    failures: Failures,
}

impl Machine<'_> {
    pub fn build(&mut self, machine: &MachineDescription) -> Result<(), Error> {
        self.stage = Stage::Building;
        self.vm
            .prepare(machine)
            .map_err(Error::vm("build the machine"))?;
        self.stage = Stage::Built;
        Ok(())
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if matches!(self.stage, Stage::Building | Stage::Built) {
            self.failures.guard(|| self.vm.abandon());
        }
    }
}
