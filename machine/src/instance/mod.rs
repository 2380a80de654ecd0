//! The VM of this process: how it starts or comes in, what is asked of it, how it leaves and how it ends.

mod disk_move_mode;
mod disk_moves;
mod door;
mod ended_jobs;
mod ending;
mod hang;
mod incoming;
mod inherited;
mod jobs;
mod later_disks;
pub(crate) mod launch;
mod leaving;
mod leaving_by_overlays;
mod on_demand;
mod requests;
mod running_move;
mod vm;

#[cfg(test)]
pub(crate) use requests::Served;
#[cfg(test)]
pub(crate) use vm::VmInstance;
