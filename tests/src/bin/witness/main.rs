//! Watches, from inside the guest of the nested job, what a migration must not disturb; and, from
//! level 1, the sessions that it holds with the guest.
//!
//! ```text
//! witness guest STOP [PORT]          in the guest: vector registers, timers, clocks; serves sessions
//! witness lateness STOP              in level 1: how late processes run there, for comparison
//! witness sessions ADDRESS STAGE TAP...
//!                                    in level 1: holds sessions with ADDRESS, which pass these taps,
//!                                    until the file STAGE says `end`; STAGE.heard is the last stage in
//!                                    which all of them went on
//! ```
//!
//! A fault is told by a line that begins with `guest: FAILED:` or `session: FAILED:` the moment it is
//! found, and by the exit code. What was seen is told by lines of JSON that begin with `witness: ` and
//! `session: `; their fields are those of [`guest::Seen`] and [`client::Stage`].

mod avx;
mod client;
mod clocks;
mod faults;
mod frames;
mod guest;
mod pattern;
mod server;
mod sys;
mod timers;

use std::process::ExitCode;

const USAGE: &str =
    "usage: witness guest STOP [PORT] | lateness STOP | sessions ADDRESS STAGE TAP...";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = match arguments[..] {
        ["guest", stop] => guest::run(stop.as_ref(), None),
        ["guest", stop, port] => match port.parse() {
            Ok(port) => guest::run(stop.as_ref(), Some(port)),
            Err(_) => Err(format!("{port} is not a port\n{USAGE}")),
        },
        ["lateness", stop] => guest::lateness(stop.as_ref()),
        ["sessions", address, stage, ref taps @ ..] => client::run(address, stage.as_ref(), taps),
        _ => Err(USAGE.to_owned()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
