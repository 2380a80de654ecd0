//! Takes a disk that another host serves, without a guest: makes its image, and what says what is missing of it, and brings that.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::image::Format;
use block::on_demand::{Allocation, Origin, OriginError, Status};
use migration::disk_modes::DiskPull;
use migration::journal::Journal;
use migration::observation::{Observation, Side};
use migration::source_loss::OnSourceLoss;
use migration::transport::Connect;
use migration::{Error, MigrationId, PullSecret};

use super::chain::Chain;
use super::here::Here;
use super::origin::PulledOrigin;
use super::record::ServingRecord;
use crate::disks::in_part::{self, ServedBy, ServedPart};

/// How long it is tried to ask who serves a disk what that holds, before anything is made; and to say that it is whole.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often.
const REST: Duration = Duration::from_millis(50);

/// Makes a connector to an address.
pub type Reach<'a> = &'a dyn Fn(&str) -> Result<Box<dyn Connect>, Observation>;

/// A disk that is to be taken from who serves it.
#[derive(Debug)]
pub struct ToPull<'a> {
    /// The image that is made.
    pub path: &'a Path,
    /// Its format.
    pub format: Format,
    /// As whom it is asked for.
    pub record: &'a ServingRecord,
    /// Where it is served.
    pub served_at: &'a str,
}

/// What was done to make a disk whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Who had the rest.
    pub origin: String,
    /// Bytes that were brought of it.
    pub fetched_bytes: u64,
    /// Why that could not be told that nothing is needed of it any more; `None` where it was.
    pub untold: Option<String>,
}

fn refused(id: &str, message: String) -> Observation {
    Observation::new(Side::Client, id, message)
}

fn origin(
    connect: Box<dyn Connect>,
    secret: (MigrationId, PullSecret),
    (disk, size): (&str, u64),
    here: Arc<Here>,
) -> Result<PulledOrigin, Observation> {
    let origin = PulledOrigin::new(connect, secret, disk, size, here);
    origin.map_err(|e: Error| e.observe(Side::Client))
}

/// Asks what the disk holds until somebody answers.
fn allocation(origin: &PulledOrigin) -> Result<Allocation, OriginError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match origin.allocation() {
            Err(OriginError::Lost { .. }) if Instant::now() < deadline => std::thread::sleep(REST),
            asked => return asked,
        }
    }
}

/// Makes the image of a disk that is served elsewhere, which lacks all of it, if it is not there yet from before.
///
/// # Errors
/// `disk.origin` when nobody serves it so, `disk.exists` and the like when the image cannot be made; nothing is left then.
pub fn begin(
    what: &ToPull<'_>,
    journal: &dyn Journal,
    reach: Reach<'_>,
) -> Result<(), Observation> {
    let ToPull {
        path,
        format,
        record,
        served_at,
    } = what;
    let begun = in_part::served_by(path).ok().flatten();
    if begun.is_some_and(|by| by.migration == record.migration) {
        return Ok(());
    }
    let wrong = || refused("serve.record", "the record names no disk".into());
    let id = record.id().ok_or_else(wrong)?;
    let here = Here::as_in(Vec::new());
    let of = (&*record.disk, record.size);
    let origin = origin(reach(served_at)?, (id, record.secret), of, here)?;
    let allocation = allocation(&origin).map_err(|e| {
        let message = format!("disk {} cannot be had", record.disk);
        refused("disk.origin", message).caused_by(Observation::from_error(
            Side::Client,
            "disk.io",
            &e,
        ))
    })?;
    let by = ServedBy {
        format: format.name().to_owned(),
        served_at: (*served_at).to_owned(),
        migration: record.migration.clone(),
        secret: record.secret,
        disk: record.disk.clone(),
        pull: DiskPull::Background,
        on_source_loss: OnSourceLoss::Pause,
        behind: Vec::new(),
    };
    in_part::begin(path, &by, &allocation, journal)
}

/// Brings what the image at `path` lacks of its disk, which no guest uses, from who serves it, where its map says or at
/// `served_at`; `told` is called now and then. It may be killed at any moment, and called again.
///
/// # Errors
/// `disk.in-part` when it is no such image, and when it cannot be made whole: it is as it was, or lacks less. `disk.claim` when
/// somebody uses it.
pub fn complete(
    path: &Path,
    served_at: Option<&str>,
    journal: &dyn Journal,
    reach: Reach<'_>,
    told: &mut dyn FnMut(&Status),
) -> Result<Pulled, Observation> {
    let part = ServedPart::open(path, journal)?;
    let by = part.by();
    let map = part.map(path)?;
    let here = Here::as_in(map.present());
    let by = ServedBy {
        served_at: served_at.unwrap_or(&by.served_at).to_owned(),
        ..by.clone()
    };
    let of = (part.size(), part.lacks(path)?);
    let failed = |e: Error| e.observe(Side::Client);
    let (origin, gate) = Chain::new(&by, of, &here, &mut |at| reach(at), failed)?;
    let origin = Arc::new(origin);
    gate.open();
    let fetched_bytes = part.fill(path, map, origin.clone(), told, |disk| here.is(disk))?;
    let untold = origin.finish(PATIENCE).err().map(|e| e.to_string());
    in_part::remove_map(path);
    Ok(Pulled {
        origin: origin.name(),
        fetched_bytes,
        untold,
    })
}
