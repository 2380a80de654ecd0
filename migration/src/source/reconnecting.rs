//! The link is lost while the guest is copied: it runs on, and a new link goes on from what is placed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::{Greeted, greet};
use super::copying::Copying;
use super::course::milliseconds;
use super::link::Link;
use super::passes::Rates;
use crate::error::Error;
use crate::frames::PassKind;
use crate::observation::Side;
use crate::progress::Event;
use crate::session::{Digests, Session};
use crate::wire::agreed::Agreed;
use crate::wire::control::PlacedSoFar;
use crate::wire::hello::Role;

/// How soon it is seen while waiting that nothing is wanted any more.
const SLICE: Duration = Duration::from_millis(20);

/// What a failed attempt means for the next.
enum Outlook {
    /// Another one may succeed.
    Open,
    /// None can.
    Shut,
    /// Nobody wants one.
    Unwanted,
}

impl Outlook {
    fn after(error: &Error) -> Self {
        match error {
            Error::Cancelled | Error::TimedOut(_) | Error::GuestEnded(_) => Self::Unwanted,
            Error::Connect { source, .. }
                if source.kind() != std::io::ErrorKind::PermissionDenied =>
            {
                Self::Open
            }
            Error::NoAnswer { .. } => Self::Open,
            // Others have taken all places for now.
            Error::Peer(told) if told.id == "migration.busy" => Self::Open,
            error if error.is_lost_link() => Self::Open,
            _ => Self::Shut,
        }
    }
}

impl Copying<'_, '_, '_> {
    /// Copying has ended for `error`: if that is the link, makes a new one and goes on.
    ///
    /// # Errors
    /// `error` where it was not the link, or a new one is not wanted or of no use; why there is none otherwise.
    pub(super) fn go_on_after(&mut self, error: Error) -> Result<(), Error> {
        let wanted = (self.moving.course).reconnect_for(self.moving.link.agreed);
        let Some(time) = wanted.filter(|_| error.is_lost_link() && !self.moving.is_stopped())
        else {
            return Err(error);
        };
        self.moving.leave_backlogs();
        let lost = self.moving.link.lose(error);
        if !lost.is_lost_link() {
            return Err(lost);
        }
        let steering = self.moving.course.steering;
        steering.emit(Event::LinkLost {
            observation: lost.observe(Side::Source),
        });
        let began = Instant::now();
        let mut pause = self.retries.lost(began);
        loop {
            self.wait_to_try(pause)?;
            let left = time.saturating_sub(began.elapsed());
            let error = match self.try_new_link(left) {
                Ok(()) => break,
                Err(error) => error,
            };
            tracing::debug!("no new link: {}", error.observe(Side::Source));
            pause = self.retries.failed();
            match Outlook::after(&error) {
                Outlook::Unwanted => return Err(error),
                Outlook::Open if began.elapsed() + pause < time => {}
                Outlook::Open | Outlook::Shut => {
                    return Err(Error::NotReconnected {
                        waited: began.elapsed(),
                        lost: Box::new(lost),
                        last: Some(Box::new(error)),
                    });
                }
            }
        }
        self.retries.made(Instant::now());
        let course = &mut *self.moving.course;
        course.report.reconnects += 1;
        steering.emit(Event::Reconnected {
            reconnects: course.report.reconnects,
            ms: milliseconds(began.elapsed()),
        });
        Ok(())
    }

    /// Lets `pause` pass.
    fn wait_to_try(&self, pause: Duration) -> Result<(), Error> {
        let until = Instant::now() + pause;
        loop {
            self.moving.course.check_wanted()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.moving.course.wait_for_change(left.min(SLICE));
        }
    }

    /// Tries for a new link, for `patience` at most until the destination has answered.
    fn try_new_link(&mut self, patience: Duration) -> Result<(), Error> {
        let course = &mut *self.moving.course;
        let patience = patience.min(course.options.io_timeout);
        let Greeted {
            connection,
            mut conversation,
            welcome,
        } = greet(course, Role::Again, self.moving.transfer.secret, patience)?;
        let agreed = self.moving.link.agreed;
        let placed = match welcome.placed {
            Some(placed)
                if Agreed::from_welcome(&welcome)? == agreed && welcome.host == course.host =>
            {
                placed
            }
            _ => {
                return Err(Error::Protocol(
                    "it does not go on from where it was".into(),
                ));
            }
        };
        conversation.goes_on(placed.pass);
        let session = Session::new(conversation, connection.into(), course.timing());
        course.on_session(&session.0);
        // What it says is of the link before, and is told once.
        self.settle(&placed)?;
        self.moving.link = Link::start(self.scope, session, agreed)?;
        let opened = self
            .moving
            .link
            .session
            .ping()
            .and_then(|()| self.moving.open_streams(self.scope, welcome.token));
        opened.map_err(|error| self.moving.link.lose(error))
    }

    /// The destination has `placed` what it says: what else was under way is sent again, in the pass that comes.
    fn settle(&mut self, placed: &PlacedSoFar) -> Result<(), Error> {
        let transfer = &mut self.moving.transfer;
        let heard = transfer.heard.map_or(0, |(pass, _)| pass);
        let begun = self.under_way.as_ref().map_or(heard, |pass| pass.number);
        if !(heard..=begun).contains(&placed.pass) {
            let what = format!("it says that it has placed pass {} of {begun}", placed.pass);
            return Err(Error::Protocol(what));
        }
        if placed.pass > heard {
            transfer.heard = Some((placed.pass, Instant::now()));
        }
        match self.under_way.take() {
            Some(pass) if pass.number <= placed.pass => {
                drop(pass);
                self.log_read = Instant::now();
                self.marks = self.moving.take_marks()?;
                self.kind = PassKind::Again;
            }
            Some(pass) => {
                // The threads that had it have ended.
                let pass = Arc::into_inner(pass).ok_or(Error::Worker)?;
                let mut marks = pass.marks;
                let frames = &placed.frames;
                transfer.sent.leave_out_placed(
                    &transfer.ram,
                    &mut marks.pages,
                    pass.number,
                    frames,
                );
                transfer
                    .sent_blocks
                    .leave_out_placed(&mut marks.blocks, pass.number, frames);
                self.marks = marks;
                self.memory.cut_in(pass.number);
                if self.kind == PassKind::First {
                    self.kind = PassKind::Rest;
                }
            }
            // Between two passes; what the next one sends is known already.
            None if placed.pass > 0 => self.kind = PassKind::Again,
            None => {}
        }
        self.pass = placed.pass + 1;
        let transfer = &mut self.moving.transfer;
        transfer.digests_before = Digests {
            pages: transfer.sent.begin_again(),
            blocks: transfer.sent_blocks.begin_again(),
        };
        transfer.digests.fill(Digests::default());
        // The new link may be slower, or faster.
        self.rates = Rates {
            bandwidth: Rates::default().bandwidth,
            known: Rates::default().known,
            ..self.rates
        };
        Ok(())
    }
}
