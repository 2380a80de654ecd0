//! `vmm disk serve` as `vmm migrate` starts it: it is there before the guest goes, and serves its image when it has gone.
//!
//! Its standard input is what it hears from `vmm migrate`: one byte if the guest stays, its end if nothing more comes, also as
//! that was killed. On its standard output it tells one line, where it is going to serve; then it lets go of its parent's
//! terminal. Before the guest has gone it takes no connection in: those that come wait.

use std::fs::OpenOptions;
use std::io::{self, Read};

use control::exit::{Exit, local};
use control::output::Output;
use machine::serving::{self, Awaited, Records, ToServe, Waited, Word};
use migration::journal::FileJournal;
use migration::observation::Observation;
use migration::transport::Listen;
use migration::transport::socket::SocketListen;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::super::detach;
use super::served_told::{Told, wrong};
use crate::sandbox::{self, Sandbox};

/// What is said when the guest stays.
pub(crate) const STAYS: u8 = b's';

/// How it is to serve.
pub(super) struct How<'a> {
    /// Its listener.
    pub(super) listener: SocketListen,
    /// Socket file of that.
    pub(super) socket: Option<&'a std::path::Path>,
    pub(super) sandbox: Sandbox,
    pub(super) rate: Option<u64>,
}

/// Waits until the guest of the image has gone, and serves it.
pub(super) fn run(
    what: ToServe<'_>,
    how: &How<'_>,
    records: &Records,
    journal: &FileJournal,
    output: Output,
) -> Result<Exit, Observation> {
    // What is typed where the guest is sent away is not for this process.
    detach::leave_session();
    let listen = how.listener.address();
    let what = ToServe {
        listen: &listen,
        ..what
    };
    let awaited = Awaited::begin(records, what).map_err(|e| wrong(&e))?;
    let mut told = Told::new(awaited.record(), records, Some(std::process::id()));
    told.event = Some("awaiting");
    output.either(&told, told.line());
    let failed = |e: io::Error| local("serve.failed", format!("cannot be left alone: {e}"));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed)?;
    let leave = |dup2: fn(&std::fs::File) -> rustix::io::Result<()>| {
        dup2(&null).map_err(|e| failed(e.into()))
    };
    leave(|null| rustix::stdio::dup2_stderr(null))?;
    leave(|null| rustix::stdio::dup2_stdout(null))?;
    let flags = fcntl_getfl(io::stdin()).map_err(|e| failed(e.into()))?;
    fcntl_setfl(io::stdin(), flags | OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
    let waited = awaited.wait(journal, &mut heard).map_err(|e| wrong(&e))?;
    leave(|null| rustix::stdio::dup2_stdin(null))?;
    let served = match waited {
        Waited::Stayed => return Ok(Exit::Done),
        Waited::Gone(served) => std::sync::Arc::new(*served),
    };
    sandbox::enter_serving(how.sandbox, records.folder(), how.socket)?;
    serving::serve(&served, &how.listener, how.rate).map_err(|e| wrong(&e))?;
    Ok(Exit::Done)
}

/// What `vmm migrate` has said since it was asked last.
fn heard() -> Word {
    let mut said = [0];
    match io::stdin().lock().read(&mut said) {
        Ok(1) if said[0] == STAYS => Word::Stays,
        // Its end says nothing of the guest.
        Ok(_) | Err(_) => Word::None,
    }
}
