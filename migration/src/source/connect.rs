//! Connections to the destination, each with its hello.

use std::time::{Duration, Instant};

use super::course::Course;
use crate::error::Error;
use crate::observation::Side;
use crate::transport::{Connect, Connection, Patience};
use crate::wire::control::{Message, Welcome};
use crate::wire::conversation::Conversation;
use crate::wire::hello::{Hello, Role};

/// What a connection shows on which the destination has given out no secret yet.
pub(super) const NO_TOKEN: [u8; 16] = [0; 16];

/// Connects to `to` and says `hello`.
pub(super) fn say_hello(
    to: &dyn Connect,
    patience: Patience<'_>,
    hello: &Hello,
) -> Result<Box<dyn Connection>, Error> {
    let connection = to.connect(patience).map_err(|source| Error::Connect {
        address: to.address(),
        source,
    })?;
    connection
        .set_io_timeout(patience.timeout)
        .map_err(Error::link("setting up a connection"))?;
    connection
        .send(&hello.encode())
        .map_err(Error::link("saying hello"))?;
    Ok(connection)
}

/// A control connection on which the destination has said welcome, and nothing else was said.
pub(super) struct Greeted {
    pub connection: Box<dyn Connection>,
    pub conversation: Conversation,
    pub welcome: Welcome,
}

/// Connects as `role`, showing `token`, and is welcomed within `patience`.
pub(super) fn greet(
    course: &Course<'_>,
    role: Role,
    token: [u8; 16],
    patience: Duration,
) -> Result<Greeted, Error> {
    let connection = connect_within(course, role, token, patience)?;
    wait_for_welcome(course, &*connection, patience)?;
    connection
        .set_io_timeout(course.options.io_timeout)
        .map_err(Error::link("setting up a connection"))?;
    let mut conversation = Conversation::new(Side::Source);
    let io = course.options.io_timeout;
    let hello = Message::receive_in_turn(&*connection, io, |kind| conversation.hear(kind))?;
    match hello {
        Message::Welcome(welcome) => Ok(Greeted {
            connection,
            conversation,
            welcome,
        }),
        Message::Failure(observation) => Err(Error::Peer(observation)),
        other => Err(other.unexpected("welcome")),
    }
}

/// Connects and says hello in the course of a migration.
pub(super) fn connect(
    course: &Course<'_>,
    role: Role,
    token: [u8; 16],
) -> Result<Box<dyn Connection>, Error> {
    connect_within(course, role, token, course.options.io_timeout)
}

fn connect_within(
    course: &Course<'_>,
    role: Role,
    token: [u8; 16],
    patience: Duration,
) -> Result<Box<dyn Connection>, Error> {
    let give_up = || course.check_wanted().is_err();
    let patience = Patience {
        timeout: patience,
        give_up: &give_up,
    };
    let hello = Hello::new(role, course.options.id, token);
    say_hello(course.to, patience, &hello).map_err(|error| match error {
        Error::Connect { .. } => course.check_wanted().err().unwrap_or(error),
        _ => error,
    })
}

/// Waits for the first answer in pieces, so that a cancel ends it.
fn wait_for_welcome(
    course: &Course<'_>,
    connection: &dyn Connection,
    patience: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + patience;
    loop {
        course.check_wanted()?;
        let readable = connection
            .wait_readable(Duration::from_millis(20))
            .map_err(Error::link("waiting for a welcome"))?;
        if readable {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Error::NoAnswer {
                operation: "waiting for a welcome",
                waited: patience,
            });
        }
    }
}
