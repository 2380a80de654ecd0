//! Connections to the destination, each with its hello.

use std::time::{Duration, Instant};

use super::course::Course;
use crate::error::Error;
use crate::transport::{Connection, Patience};
use crate::wire::hello::{Hello, Role};

/// What a connection shows on which the destination has given out no secret yet.
pub(super) const NO_TOKEN: [u8; 16] = [0; 16];

/// Connects and says hello; of a control connection, until the answer is there.
pub(super) fn connect(
    course: &Course<'_>,
    role: Role,
    token: [u8; 16],
) -> Result<Box<dyn Connection>, Error> {
    let give_up = || course.check_wanted().is_err();
    let io_timeout = course.options.io_timeout;
    let connection = course
        .to
        .connect(Patience {
            timeout: io_timeout,
            give_up: &give_up,
        })
        .map_err(|source| match course.check_wanted() {
            Err(unwanted) => unwanted,
            Ok(()) => Error::Connect {
                address: course.to.address(),
                source,
            },
        })?;
    connection
        .set_io_timeout(io_timeout)
        .map_err(Error::link("setting up a connection"))?;
    let hello = Hello::new(role, course.options.id, token);
    connection
        .send(&hello.encode())
        .map_err(Error::link("saying hello"))?;
    if role == Role::Control {
        wait_for_welcome(course, &*connection)?;
    }
    Ok(connection)
}

/// Waits for the first answer in pieces, so that a cancel ends it.
fn wait_for_welcome(course: &Course<'_>, connection: &dyn Connection) -> Result<(), Error> {
    let patience = course.options.io_timeout;
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
