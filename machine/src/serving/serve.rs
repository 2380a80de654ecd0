//! Serves an image until its client is whole and durable.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use migration::MigrationId;
use migration::journal::Journal;
use migration::observation::{Observation, Side};
use migration::os;
use migration::pull::server::Options;
use migration::pull::{PullServer, PullSource, Served};
use migration::transport::Listen;

use super::awaiting::check_gone;
use super::error::ServeError;
use super::image::{self, ServedImage};
use super::record::{Progress, ServedWhen, ServingRecord};
use super::records::{Held, Records};
use super::to_serve::{ToServe, begin};
use crate::threads::{self, ThreadKind};

/// How often it is recorded what the client lacks.
const LOOK: Duration = Duration::from_secs(1);

/// Opens and claims an image, and makes its record, or finds that of an earlier process.
///
/// # Errors
/// When another process serves it, or writes it, or it is not what is recorded; and when it was to be served when its guest had
/// gone, which has not, as `journal` says.
pub fn open(
    records: &Records,
    what: &ToServe<'_>,
    journal: &dyn Journal,
) -> Result<ServedImage, ServeError> {
    let opened = image::open(what.image, what.format, what.rules, journal)?;
    let (size, missing) = (opened.size(), opened.held());
    let (record, held) = match records.find(what.image)? {
        Some(found) => {
            let (record, held) = go_on(records, found, what, size)?;
            let held = match (record.when, record.progress) {
                (ServedWhen::Now, _) | (_, Progress::Released) => held,
                (ServedWhen::GuestHasGone, _) => check_gone(what.image, held, journal)?,
            };
            let progress = match record.progress {
                Progress::Awaiting => Progress::Serving { missing },
                as_before => as_before,
            };
            (ServingRecord { progress, ..record }, held)
        }
        // Who would be its client is not told who has the rest.
        None if opened.is_in_part() => {
            return Err(ServeError::NotWhole {
                path: what.image.to_owned(),
            });
        }
        None => begin(records, what, size, ServedWhen::Now)?,
    };
    held.write(&record)?;
    Ok(ServedImage::new(opened, record, held))
}

fn go_on(
    records: &Records,
    found: ServingRecord,
    what: &ToServe<'_>,
    size: u64,
) -> Result<(ServingRecord, Held), ServeError> {
    let held = records.hold(&found)?;
    let differs = [
        (found.size != size, format!("it has {size} bytes")),
        (
            found.disk != what.disk,
            format!("it was to be disk {}", what.disk),
        ),
        (
            found.format != what.format.name(),
            format!("it was to be {}", what.format),
        ),
    ];
    if let Some((_, what)) = differs.into_iter().find(|(differs, _)| *differs) {
        return Err(ServeError::Another {
            path: found.image,
            disk: found.disk,
            size: found.size,
            what,
        });
    }
    let record = ServingRecord {
        listen: what.listen.to_owned(),
        client: what.client.map(str::to_owned).or(found.client.clone()),
        ..found
    };
    Ok((record, held))
}

/// Serves an image at `listen` to its client alone, until that is whole and durable; at most at `rate` bytes a second what nobody
/// waits for.
///
/// # Errors
/// When no connection can ever come again.
pub fn serve(
    image: &Arc<ServedImage>,
    listen: &dyn Listen,
    rate: Option<u64>,
) -> Result<Served, ServeError> {
    let record = image.record();
    let id = record.id().unwrap_or(MigrationId([0; 16]));
    let options = Options {
        rate,
        ..Options::default()
    };
    let source: Arc<dyn PullSource> = image.clone();
    let server = PullServer::new(vec![source], id, record.secret, options);
    let served = std::thread::scope(|scope| {
        let (ended, ends) = channel::<()>();
        let server = &server;
        let notes = move || {
            threads::begin(ThreadKind::Serving);
            while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(LOOK) {
                note(image, server);
            }
        };
        let started = Builder::new().spawn_scoped(scope, notes);
        if let Err(error) = started {
            let error = os::no_thread(error);
            tracing::warn!(%error, "what the client lacks is not recorded");
        }
        let served = server.serve(listen);
        drop(ended);
        served
    });
    let served = served.map_err(|e| ServeError::Server(Box::new(e.observe(Side::Source))));
    note(image, &server);
    served
}

fn note(image: &ServedImage, server: &PullServer) {
    if server.connections() == 0 {
        // Nobody has told this process anything yet; what is recorded is better.
        return;
    }
    for volume in server.status() {
        if volume.is_released {
            continue;
        }
        let missing = volume.missing;
        if let Err(error) = image.note(Progress::Serving { missing }) {
            let error: Observation = error.observe();
            tracing::warn!("{error}");
        }
    }
}
