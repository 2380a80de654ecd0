//! A source that gives up and has no link says so on a connection of its own: its destination may be waiting for it.

use std::time::Duration;

use super::connect::say_hello;
use super::moving::Moving;
use crate::error::Error;
use crate::observation::Side;
use crate::transport::Patience;
use crate::wire::control::Message;
use crate::wire::conversation::Conversation;
use crate::wire::hello::{Hello, Role};

/// How long that may take: the destination does not wait for ever either.
const PATIENCE: Duration = Duration::from_secs(1);

impl Moving<'_, '_, '_> {
    /// Tells the destination that it ends for `error`, if it may be waiting.
    pub(super) fn say_good_bye(&self, error: &Error) {
        let is_told = matches!(error, Error::Peer(_));
        if is_told || self.course.reconnect_for(self.link.agreed).is_none() {
            return;
        }
        if let Err(error) = self.tell_that_it_ends(error) {
            tracing::debug!("no good-bye: {}", error.observe(Side::Source));
        }
    }

    fn tell_that_it_ends(&self, why: &Error) -> Result<(), Error> {
        let patience = PATIENCE.min(self.course.options.io_timeout);
        // It ends whatever is wanted by now.
        let give_up = || false;
        let patience = Patience {
            timeout: patience,
            give_up: &give_up,
        };
        let hello = Hello::new(Role::Again, self.course.options.id, self.transfer.secret);
        let connection = say_hello(self.course.to, patience, &hello)?;
        let mut conversation = Conversation::new(Side::Source);
        let readable = || {
            connection
                .wait_readable(patience.timeout)
                .map_err(Error::link("saying good-bye"))
        };
        if !readable()? {
            return Err(Error::NoAnswer {
                operation: "saying good-bye",
                waited: patience.timeout,
            });
        }
        let welcome = Message::receive_in_turn(&*connection, patience.timeout, |kind| {
            conversation.hear(kind)
        })?;
        if let Message::Failure(observation) = welcome {
            return Err(Error::Peer(observation));
        }
        let frame = Message::Failure(Box::new(why.observe(Side::Source))).encode()?;
        connection
            .send(&frame)
            .map_err(Error::link("saying good-bye"))?;
        // What is closed too early may not arrive.
        readable().map(drop)
    }
}
