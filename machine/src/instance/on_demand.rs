//! Disks of the VM of which another host serves a part.

use control::on_demand::OnDemandChange;
use migration::observation::{Observation, Side};

use crate::disks::changes::NotChanged;
use crate::instance::vm::{VmInstance, refuse};

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
