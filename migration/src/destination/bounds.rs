//! Whether what a source asks for can be meant at all, before anything is done for it.

use crate::blocks::MAX_SIZE;
use crate::error::Error;
use crate::vm::VolumeOffer;
use crate::wire::blocks::SECTOR;
use crate::wire::control::Negotiate;
use crate::wire::{MAX_REGIONS, MAX_STREAMS, MAX_VOLUMES};

/// Checks numbers that memory and threads will be spent on.
pub(super) fn check_bounds(requested: &Negotiate) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Protocol(what));
    if !(1..=MAX_STREAMS).contains(&requested.streams) {
        return wrong(format!("it wants {} data streams", requested.streams));
    }
    let ram = &requested.machine.ram;
    if ram.is_empty() || ram.len() > MAX_REGIONS {
        return wrong(format!("it describes {} RAM regions", ram.len()));
    }
    let mut end = 0;
    for region in ram {
        let aligned = [region.gpa, region.len]
            .iter()
            .all(|n| n % crate::PAGE_SIZE == 0);
        let next = region
            .gpa
            .checked_add(region.len)
            .filter(|&next| next < 1 << 52);
        match next {
            Some(next) if aligned && region.len > 0 && region.gpa >= end => end = next,
            _ => {
                return wrong(format!(
                    "it describes a RAM region of {:#x} bytes at {:#x}",
                    region.len, region.gpa
                ));
            }
        }
    }
    check_volumes(&requested.volumes)
}

fn check_volumes(volumes: &[VolumeOffer]) -> Result<(), Error> {
    if volumes.len() > MAX_VOLUMES {
        return Err(Error::Protocol(format!(
            "it wants to send {} disks",
            volumes.len()
        )));
    }
    for (number, volume) in volumes.iter().enumerate() {
        let is_disk = (1..=MAX_SIZE).contains(&volume.size) && volume.size % SECTOR == 0;
        let is_twice = volumes[..number].iter().any(|other| other.id == volume.id);
        if !is_disk || is_twice || volume.allocated > volume.size {
            return Err(Error::Protocol(format!(
                "it describes disk {:?} of {} bytes, {} of them data",
                volume.id, volume.size, volume.allocated
            )));
        }
    }
    Ok(())
}
