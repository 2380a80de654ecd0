//! The link is lost while the guest is copied: what has come is kept for as long as its source may come again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::built::Built;
use super::link::Link;
use super::taking::Taking;
use crate::error::Error;
use crate::id::random_bytes;
use crate::observation::Side;
use crate::progress::Event;
use crate::session::{Note, SLICE, Session};
use crate::transport::Connection;
use crate::wire::control::{Message, Welcome};
use crate::wire::conversation::Conversation;

impl Built<'_, '_, '_> {
    /// For how long what has come is kept for a source whose link is lost.
    fn keep_for(&self) -> Option<Duration> {
        let Taking { link, course, .. } = &self.taking;
        let told = link.reconnect_for(&self.transfer.requested)?;
        // It may notice later than this side that the link is lost.
        Some(told.min(course.options.keep_at_most) + course.options.peer_timeout)
    }

    /// The link is lost for `lost`: waits for the source to come again, and goes on with it.
    ///
    /// # Errors
    /// `lost` where it was not the link, or nobody comes again; why it was in vain otherwise.
    pub(super) fn await_source(&mut self, lost: Error) -> Result<(), Error> {
        let keep_for = self.keep_for();
        let Some(keep_for) = keep_for.filter(|_| lost.is_lost_link() && !self.is_stopped()) else {
            return Err(lost);
        };
        let transfer = &mut self.transfer;
        let mut stopped = false;
        let lost = self.taking.link.lose(lost, |note| match note {
            Note::PassDone {
                stream,
                pass,
                digests,
            } => transfer.pass_done(stream, pass, digests),
            // Its guest stands still, and waits for no link.
            Note::Message(Message::State(_)) => stopped = true,
            _ => {}
        });
        if stopped || !lost.is_lost_link() {
            return Err(lost);
        }
        let steering = self.taking.course.steering;
        steering.emit(Event::LinkLost {
            observation: lost.observe(Side::Destination),
        });
        let began = Instant::now();
        while began.elapsed() < keep_for {
            steering.check()?;
            let Some(connection) = self.taking.course.reception.wait_for_source(SLICE) else {
                continue;
            };
            match self.go_on_with(connection) {
                Ok(()) => {
                    let course = &mut self.taking.course;
                    course.report.reconnects += 1;
                    steering.emit(Event::Reconnected {
                        reconnects: course.report.reconnects,
                        ms: began.elapsed().as_secs_f64() * 1e3,
                    });
                    return Ok(());
                }
                Err(error) if error.is_lost_link() => {
                    tracing::debug!("a new link: {}", error.observe(Side::Destination));
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::NotReconnected {
            waited: keep_for,
            lost: Box::new(lost),
            last: None,
        })
    }

    /// The source has come again on `connection`: tells it what is placed.
    fn go_on_with(&mut self, connection: Arc<dyn Connection>) -> Result<(), Error> {
        let Self { transfer, taking } = self;
        let course = &mut *taking.course;
        // The old link is over, and nothing that came on it is placed any more.
        let placed = transfer.begin_again();
        let mut conversation = Conversation::new(Side::Destination);
        conversation.goes_on(placed.pass);
        let session = Session::new(conversation, connection, course.timing());
        course.steering.attach(&session.0);
        let token = random_bytes().map_err(Error::Random)?;
        course.reception.admit(token, &session.0);
        let mut link: Link<'_, '_> = taking.link.again(session);
        link.listen()?;
        link.compare(&transfer.receiving.disks)?;
        link.session.send(&Message::Welcome(Welcome {
            version: link.agreed.version(),
            token,
            host: link.named_host(course.journal),
            capabilities: link.agreed.told(),
            placed: Some(placed),
        }))?;
        taking.link = link;
        Ok(())
    }
}
