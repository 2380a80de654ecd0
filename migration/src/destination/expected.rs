//! The migration under way, as far as connections are let in to it.

use std::io;
use std::sync::Arc;

use crate::error::Error;
use crate::id::{MigrationId, is_same_secret};
use crate::session::Session;
use crate::transport::Connection;
use crate::wire::MAX_STREAMS;
use crate::wire::agreed::Agreed;
use crate::wire::hello::Hello;

/// What is known of it.
pub(super) struct Expected {
    id: MigrationId,
    /// What its first welcome gave out.
    secret: Option<[u8; 16]>,
    /// What data connections of its link show, once it was given out, and where they go then.
    admission: Option<([u8; 16], Arc<Session>)>,
    /// Streams that came in on that link already, one bit each.
    came: u64,
    /// What was agreed on, while its source may come again.
    comes_again: Option<Agreed>,
    /// Its source has come again.
    again: Option<Arc<dyn Connection>>,
}

impl Expected {
    /// A migration that has just come, to which nobody else is let in.
    pub fn new(id: MigrationId) -> Self {
        Self {
            id,
            secret: None,
            admission: None,
            came: 0,
            comes_again: None,
            again: None,
        }
    }

    /// A link begins: lets data connections with `token` in to `session`.
    pub fn admit(&mut self, token: [u8; 16], session: &Arc<Session>) {
        self.secret.get_or_insert(token);
        self.admission = Some((token, session.clone()));
        self.came = 0;
    }

    /// The session to which the data connection of `hello`, which is stream `stream`, belongs.
    pub fn data(&mut self, hello: &Hello, stream: u16) -> Option<Arc<Session>> {
        let (token, session) = self.admission.as_ref()?;
        let bit = 1u64.checked_shl(u32::from(stream)).unwrap_or(0);
        let fits = self.id == hello.id
            && is_same_secret(token, &hello.token)
            && stream < u16::from(MAX_STREAMS)
            && session.takes_data();
        if !fits || bit == 0 || self.came & bit != 0 {
            return None;
        }
        self.came |= bit;
        Some(session.clone())
    }

    /// From here on its source, with which that was agreed on, may come again.
    pub fn let_come_again(&mut self, agreed: Agreed) {
        self.comes_again = Some(agreed);
    }

    /// From here on nobody may.
    pub fn end_coming_again(&mut self) {
        self.comes_again = None;
        self.again = None;
    }

    /// Takes in a source that comes again, which ends the link that it had, however that looks from here; `false` if it is
    /// not the one, or too late.
    pub fn come_again(
        &mut self,
        hello: &Hello,
        agreed: Agreed,
        connection: Arc<dyn Connection>,
    ) -> bool {
        let is_the_one = self.id == hello.id
            && (self.secret.as_ref()).is_some_and(|ours| is_same_secret(ours, &hello.token));
        if !is_the_one || self.comes_again != Some(agreed) {
            return false;
        }
        // One that came before has lost its link again by now.
        if let Some(before) = self.again.replace(connection) {
            before.shutdown();
        }
        if let Some((_, session)) = &self.admission {
            let replaced =
                io::Error::new(io::ErrorKind::ConnectionAborted, "its source came again");
            session.fail(Error::link("waiting for pages")(replaced));
        }
        true
    }

    /// Whether it has.
    pub fn has_come_again(&self) -> bool {
        self.again.is_some()
    }

    /// The connection of a source that has come again.
    pub fn take_again(&mut self) -> Option<Arc<dyn Connection>> {
        self.again.take()
    }
}
