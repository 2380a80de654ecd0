//! `vmm console`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use control::api::client::Client;
use control::exit::{Exit, local};
use control::runtime_dir::{Entry, RuntimeDir};
use migration::observation::Observation;

use super::event_loop::block_on;
use super::terminal::{Keys, RawTerminal, may_read, read_keys};
use super::wording::described;
use control::output::lose;

/// How long a console that is busy may take to take a viewer in.
const CONNECT: Duration = Duration::from_secs(2);
/// Pieces of at most 1 KiB that wait for a guest which does not take them: what is typed is read beyond
/// them no more, and so is the key that leaves.
const WAITING_KEYS: usize = 1024;

pub(super) fn run(name: &str, runtime: &RuntimeDir) -> Result<Exit, Observation> {
    if let Entry::Ended(status) = runtime.find(name)? {
        return Err(local(
            "vm.ended",
            format!("{}; see `vmm logs {name}`", described(&status)),
        ));
    }
    let broken = |e: io::Error| local("vm.unreachable", format!("the console of {name:?}: {e}"));
    // One that does not answer shows nothing either, which looks like a guest that prints nothing.
    block_on(Client::new(runtime, name).status())?;
    let mut stream = connect(name, runtime).map_err(broken)?;
    let keys = stream.try_clone().map_err(broken)?;
    let terminal = RawTerminal::enter_until_signal()
        .map_err(|e| local("host.resources", format!("hear signals: {e}")))?;
    let raw = terminal.is_some();
    if raw {
        eprint!("attached to {name}: Ctrl-] detaches\r\n");
    }
    if may_read() {
        type_to(keys, raw);
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(&buffer[..n]).and_then(|()| stdout.flush());
                if let Err(e) = written {
                    lose(e);
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    drop(terminal);
    if raw {
        eprintln!("\ndetached from {name}");
    }
    Ok(Exit::Done)
}

/// Connects to the console, which takes viewers in one after the other.
fn connect(name: &str, runtime: &RuntimeDir) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match runtime.connect_console(name) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            connected => return connected,
        }
    }
}

/// Hands on what is typed, on threads that end with the process at the latest: a guest is still seen when
/// nothing more is typed. The one that reads never waits for the guest, so that the key which leaves is
/// heard.
fn type_to(console: UnixStream, raw: bool) {
    let (typed, keys) = sync_channel::<Vec<u8>>(WAITING_KEYS);
    let Ok(leaves) = console.try_clone() else {
        return;
    };
    let writes = std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || write_keys(console, &keys));
    if writes.is_err() {
        return;
    }
    let _ = std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            read_keys(raw, |keys| match keys {
                Keys::Bytes(bytes) => typed.send(bytes.to_vec()).is_ok(),
                Keys::Escape => {
                    let _ = leaves.shutdown(std::net::Shutdown::Both);
                    false
                }
            });
        });
}

fn write_keys(mut console: UnixStream, keys: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = keys.recv() {
        if console.write_all(&bytes).is_err() {
            return;
        }
    }
}
