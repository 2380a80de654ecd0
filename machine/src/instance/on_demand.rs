//! Disks of the VM of which another host serves a part.

use std::sync::Arc;

use control::job::Job;
use control::on_demand::OnDemandChange;
use migration::observation::{Observation, Side};

use crate::disks::Disk;
use crate::disks::changes::NotChanged;
use crate::disks::coming::Coming;
use crate::instance::vm::{Core, VmInstance, refuse};

impl Core {
    /// Disks of which a part comes, or came, from another host.
    fn pulled(&self) -> impl Iterator<Item = Arc<Disk>> + use<> {
        let machine = self.machine.as_ref();
        let disks: Vec<_> = machine
            .into_iter()
            .flat_map(|machine| machine.devices().disks.iter())
            .filter(|disk| disk.coming.is_some())
            .collect();
        disks.into_iter()
    }

    /// What brings them, as jobs.
    pub(super) fn pulls(&self) -> impl Iterator<Item = Job> + use<> {
        self.pulled().filter_map(|disk| {
            let to = disk.image().file().path().display().to_string();
            disk.coming.as_ref()?.told(&disk.id, to)
        })
    }

    /// The disk that job `id` brings.
    pub(super) fn pulled_by(&self, id: &str) -> Option<Arc<Disk>> {
        let is_it = |coming: &Coming| coming.job().to_string() == id;
        self.pulled()
            .find(|disk| disk.coming.as_deref().is_some_and(is_it))
    }
}

impl VmInstance {
    /// Changes how what is missing of disk `id` is had.
    ///
    /// # Errors
    /// `disk.unknown`; `disk.whole` when nothing is missing that is served; `disk.terms` when it cannot be kept.
    pub(super) fn change_missing(
        &self,
        id: &str,
        change: OnDemandChange,
    ) -> Result<(), Observation> {
        let machine = self.lock().machine.clone();
        let disk = machine.and_then(|machine| machine.devices().disks.find(id));
        let disk =
            disk.ok_or_else(|| refuse("disk.unknown", format!("the guest has no disk {id}")))?;
        let changed = match &disk.coming {
            Some(coming) => coming.change(change),
            None => Err(NotChanged::Over),
        };
        changed.map_err(|why| match why {
            NotChanged::Over => {
                let message = format!("nothing of disk {id} is missing that another host serves");
                refuse("disk.whole", message)
            }
            NotChanged::Late => {
                let message = format!(
                    "the storage of disk {id} has not confirmed it in time: look later whether it came into force"
                );
                refuse("disk.terms", message)
            }
            NotChanged::Failed(error) => {
                let message = format!("what was changed of disk {id} cannot be kept");
                let cause = Observation::from_error(Side::Source, "disk.io", &error);
                refuse("disk.terms", message).caused_by(cause)
            }
        })
    }
}
