//! Prepare: the destination builds the machine, and pages can travel.

use std::sync::Arc;
use std::thread::Scope;
use std::time::Duration;

use super::connect::connect;
use super::flushing::Flushing;
use super::moving::Moving;
use crate::blocks::digests::{DigestKey, Keys};
use crate::blocks::finder::Finder;
use crate::error::Error;
use crate::frames::Outgoing;
use crate::id::{HostId, MigrationId};
use crate::journal::{Handover, Journal, SourceRecord};
use crate::observation::Side;
use crate::pages::sender::Memory;
use crate::pages::{full_digest, populate};
use crate::progress::Verify;
use crate::raw::HashKey;
use crate::streams::sender::Sending;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Extents, MAX_EXTENTS, Message, Prepared};
use crate::wire::hello::Role;

impl<'s, 'a> Moving<'_, 's, 'a> {
    /// Offers the disks and has the machine built; what that told of costs.
    pub(super) fn build(&mut self) -> Result<(), Error> {
        let Self {
            link,
            holds,
            transfer,
            course,
            ..
        } = self;
        let (vm, journal, id) = (course.vm, course.journal, course.options.id);
        let reclaim = move || vm.reclaim_disks().map_err(Error::vm("reclaim the disks"));
        holds.disks = Some(course.undone_by(reclaim));
        vm.offer_disks().map_err(Error::vm("offer the disks"))?;
        link.session.send(&Message::Prepare)?;
        // While the destination builds the machine: both wait for their disks.
        let (destination, host) = (course.to.address(), course.host);
        let keep = move || record_kept(journal, id, &destination, host);
        holds.record = Some(course.undone_by(keep));
        course.record(Handover::Begun)?;
        let ours = journal.reserve(id, Side::Source)?;
        let patience = course.options.prepare_timeout;
        let prepared: Prepared = match link.answer("preparing", patience, || course.check_time())? {
            Message::Prepared(prepared) => prepared,
            other => return Err(other.unexpected("prepared")),
        };
        let theirs = prepared.journal_ms.clamp(0.0, 1e6) / 1e3;
        transfer.costs.records = ours + Duration::from_secs_f64(theirs);
        transfer.hash_speeds = prepared
            .hash_bytes_per_s
            .filter(|theirs| *theirs >= 1.0)
            .map(|theirs| [full_digest::speed(), theirs]);
        transfer.doubtful_disks = prepared.disks;
        if link.agreed.has(Capabilities::BLOCK_DIGESTS) {
            transfer.sent_blocks.keep(&prepared.kept_disks)?;
        }
        Ok(())
    }

    /// Turns the dirty log on, and has the changes of disks tracked.
    pub(super) fn mark_writes(&mut self) -> Result<(), Error> {
        let Self {
            link,
            holds,
            transfer,
            course,
            ..
        } = self;
        let vm = course.vm;
        let stop_log = move || vm.stop_dirty_log().map_err(Error::vm("stop the dirty log"));
        holds.log = Some(course.undone_by(stop_log));
        vm.start_dirty_log()
            .map_err(Error::vm("start the dirty log"))?;
        let extents = populate::extents(&transfer.ram, MAX_EXTENTS);
        link.session.send(&Message::Extents(Extents { extents }))?;
        holds.marks = transfer.disks.mark(course)?;
        holds.tracking = transfer.disks.start_tracking(course)?;
        Ok(())
    }

    /// Opens the data streams of the link, which show `token`.
    pub(super) fn open_streams(
        &mut self,
        scope: &'s Scope<'s, 'a>,
        token: [u8; 16],
    ) -> Result<(), Error> {
        let Self {
            link,
            transfer,
            course,
            ..
        } = self;
        let vm = course.vm;
        let verify = course.options.request.verify;
        let key = Arc::new(HashKey::new(&transfer.secret));
        let streams = transfer.digests.len() as u8;
        for stream in 0..streams {
            let role = Role::Data {
                stream: u16::from(stream),
            };
            let sending = Sending {
                memory: Memory {
                    marks: vm,
                    ram: transfer.ram.clone(),
                    sent: transfer.sent.clone(),
                    key: (verify == Verify::Stream).then(|| key.clone()),
                },
                disks: transfer.sent_blocks.clone(),
                disks_key: (verify != Verify::Off).then(|| key.clone()),
                outgoing: Outgoing {
                    session: link.session.clone(),
                    steering: course.steering,
                    bucket: course.bucket.clone(),
                    counters: course.counters.clone(),
                },
            };
            let connection = connect(course, role, token)?;
            if !transfer.disks.is_empty() {
                let patience = course
                    .options
                    .storage_timeout
                    .max(course.options.io_timeout);
                connection
                    .set_io_timeout(patience)
                    .map_err(Error::link("setting up a connection"))?;
            }
            link.add_stream(scope, connection, sending, [stream, streams])?;
        }
        if transfer.sent_blocks.are_to_be_found() {
            let keys = Keys {
                digest: DigestKey::new(&transfer.secret),
                sum: (verify != Verify::Off).then_some(key),
            };
            let (disks, counters) = (transfer.sent_blocks.clone(), course.counters.clone());
            link.start_finding(scope, |session| Finder::new(disks, session, counters, keys))?;
        }
        Ok(())
    }
}

impl<'s, 'a> Moving<'_, 's, 'a> {
    /// Has the disks flushed beside the passes.
    pub(super) fn start_flushing(&self, scope: &'s Scope<'s, 'a>) -> Result<Flushing<'a>, Error> {
        let Self { link, course, .. } = self;
        Flushing::start(scope, course.vm, link.session.clone(), course.steering)
    }
}

/// Records that the guest stayed, where something was recorded; else no record is needed.
fn record_kept(
    journal: &dyn Journal,
    id: MigrationId,
    destination: &str,
    host: Option<HostId>,
) -> Result<(), Error> {
    if journal.recorded(id)?.is_none() {
        return Ok(journal.discard(id, Side::Source)?);
    }
    let record = SourceRecord {
        handover: Handover::Kept,
        destination: destination.to_owned(),
        host,
        overlay: None,
    };
    Ok(journal.record(id, &record)?)
}
