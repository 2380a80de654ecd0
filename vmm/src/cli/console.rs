//! `vmm console`.

use std::io::{self, Read, Write};

use migration::observation::Observation;

use super::exit::{Exit, local};
use super::terminal::{Keys, RawTerminal, may_read, read_keys};
use crate::runtime_dir::{Entry, RuntimeDir};

pub(super) fn run(name: &str, runtime: &RuntimeDir) -> Result<Exit, Observation> {
    if let Entry::Failed(_) = runtime.find(name)? {
        return Err(local(
            "vm.failed",
            format!(
                "the VM {name:?} failed: its output is in {}",
                runtime.serial_log(name).display()
            ),
        ));
    }
    let broken = |e: io::Error| local("vm.unreachable", format!("the console of {name:?}: {e}"));
    let mut stream = runtime.connect_console(name).map_err(broken)?;
    let mut keys = stream.try_clone().map_err(broken)?;
    let terminal = RawTerminal::enter();
    let raw = terminal.is_some();
    if raw {
        eprint!("attached to {name}: Ctrl-] detaches\r\n");
    }
    if may_read() {
        // Ends with the process at the latest: a guest is still seen when nothing more is typed.
        let _ = std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                read_keys(raw, |typed| match typed {
                    Keys::Bytes(bytes) => keys.write_all(bytes).is_ok(),
                    Keys::Escape => {
                        let _ = keys.shutdown(std::net::Shutdown::Both);
                        false
                    }
                });
            });
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                let mut stdout = io::stdout().lock();
                if stdout
                    .write_all(&buffer[..n])
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
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
