//! The process that holds a VM, from its folder to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use migration::observation::Observation;

use super::Output;
use super::detach;
use super::exit::{Exit, exit_of, local};
use super::terminal::{Keys, RawTerminal, may_read, read_keys};
use crate::api::ControlServer;
use crate::console::{ConsoleHub, ConsoleOutputs, SERIAL_LOG_LIMIT};
use crate::instance::{Instance, VmState, VmStatus};
use crate::logging::{self, LogOptions};
use crate::memory::RamFile;
use crate::rotating_file::RotatingFile;
use crate::runtime_dir::VmDir;
use crate::sandbox::{self, Kind, Places, Sandbox};

/// How long the console may take to write its last bytes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How long one look for a new state may take.
const LOOK: Duration = Duration::from_secs(3600);

/// Who sees the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attachment {
    /// This terminal.
    Foreground,
    /// Nobody until they attach; the parent waits for the announcement.
    Detached,
}

/// How far the process is confined, and where it works.
#[derive(Debug)]
pub(super) struct Confined {
    pub(super) sandbox: Sandbox,
    /// Socket file that it listens at.
    pub(super) socket: Option<PathBuf>,
}

impl Confined {
    pub(super) fn new(sandbox: Sandbox) -> Self {
        Self {
            sandbox,
            socket: None,
        }
    }

    /// Confines this process, which has no other threads yet.
    fn enter(&self, dir: &VmDir) -> Result<(), Observation> {
        let name = dir.name();
        if self.sandbox == Sandbox::Off {
            tracing::warn!("the sandbox is off");
            eprintln!(
                "vmm: warning: {name} is not confined (--sandbox off): a guest that breaks out of it \
                 has all rights of this user"
            );
            return Ok(());
        }
        let places = Places {
            socket: self.socket.as_deref(),
        };
        let missing = sandbox::enter(self.sandbox, dir, places)?.join("; ");
        if !missing.is_empty() {
            let what = format!("for {name} this kernel cannot limit: {missing}");
            let warning = local("sandbox.partial", what);
            tracing::warn!(id = warning.id, "{warning}");
            eprintln!("vmm: warning: {} [{}]", warning.message, warning.id);
        }
        Ok(())
    }
}

/// Starts the VM that `launch` builds, serves it and holds it until it ends.
pub(super) fn hold(
    dir: VmDir,
    attachment: Attachment,
    confined: Confined,
    log: LogOptions,
    output: Output,
    launch: impl FnOnce(&VmDir, &ConsoleHub, RamFile) -> Result<Arc<dyn Instance>, Observation>,
) -> Result<Exit, Observation> {
    let started = start(&dir, attachment, &confined, log, output, launch);
    let (held, instance) = match started {
        Ok(started) => started,
        Err(why) => {
            tracing::error!(%why, "the VM does not start");
            // The name is free again before the caller hears of it.
            dir.close();
            if attachment == Attachment::Detached {
                detach::announce_failed(&why);
                return Ok(exit_of(&why));
            }
            return Err(why);
        }
    };
    sandbox::begin(Kind::Main);
    let status = held.follow(&*instance, attachment, output);
    let refused = sandbox::refusals();
    if refused > 0 {
        tracing::warn!(refused, "the sandbox refused system calls of this VM");
    }
    held.end();
    drop(instance);
    let ended = finish(&dir, attachment, output, &status);
    // Threads of the machine may still hold handles of the folder.
    dir.close();
    ended
}

/// What serves the VM beside the machine.
struct Held {
    server: ControlServer,
    console: ConsoleHub,
    terminal: Option<RawTerminal>,
}

fn start(
    dir: &VmDir,
    attachment: Attachment,
    confined: &Confined,
    log: LogOptions,
    output: Output,
    launch: impl FnOnce(&VmDir, &ConsoleHub, RamFile) -> Result<Arc<dyn Instance>, Observation>,
) -> Result<(Held, Arc<dyn Instance>), Observation> {
    let failed = |what: &str, e: std::io::Error| local("host.runtime-dir", format!("{what}: {e}"));
    logging::init(log, Some(&dir.vmm_log())).map_err(|e| failed("begin the log", e))?;
    logging::log_panics();
    // A confined process may not mount.
    let file = RamFile::on_own_tmpfs().unwrap_or_else(|e| {
        tracing::debug!(error = %e, "RAM lies in a memfd: no tmpfs of its own");
        RamFile::memfd()
    });
    confined.enter(dir)?;
    let mut server = ControlServer::start(dir.bind_control()?)
        .map_err(|e| failed("serve the control socket", e))?;
    let shown = attachment == Attachment::Foreground && !output.is_json();
    let stdout = if shown {
        Some(own_stdout().map_err(|e| failed("use standard output", e))?)
    } else {
        None
    };
    let serial = RotatingFile::create(&dir.serial_log(), SERIAL_LOG_LIMIT)
        .map_err(|e| failed("begin the console's log", e))?;
    let console = ConsoleHub::start(ConsoleOutputs {
        log: Some(serial),
        listener: Some(dir.bind_console()?),
        stdout,
    })
    .map_err(|e| failed("start the console", e))?;
    let instance = launch(dir, &console, file)?;
    tracing::info!(name = dir.name(), "the VM is up");
    server.serve(Arc::clone(&instance));
    let mut held = Held {
        server,
        console,
        terminal: None,
    };
    match attachment {
        Attachment::Detached => {
            if let Err(why) = detach::announce_up(&instance.status(), dir) {
                // Nobody knows of this VM: end it.
                let _ = instance.stop(crate::instance::StopMode::Force);
                held.end();
                return Err(why);
            }
        }
        Attachment::Foreground => {
            if shown && may_read() {
                held.terminal = RawTerminal::enter();
                held.type_to_guest();
            }
        }
    }
    Ok((held, instance))
}

fn own_stdout() -> std::io::Result<OwnedFd> {
    std::io::stdout().as_fd().try_clone_to_owned()
}

impl Held {
    /// Hands on what is typed, on a thread that ends with the process.
    fn type_to_guest(&self) {
        let console = self.console.clone();
        let terminal = self.terminal.is_some();
        let _ = std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                sandbox::begin(Kind::Keyboard);
                read_keys(terminal, |keys| {
                    match keys {
                        Keys::Bytes(bytes) => console.send_input(bytes),
                        Keys::Escape => {
                            let _ = rustix::process::kill_process(
                                rustix::process::getpid(),
                                rustix::process::Signal::TERM,
                            );
                        }
                    }
                    true
                });
            });
    }

    /// Waits until the VM has ended and tells what happens meanwhile; its last status.
    fn follow(&self, instance: &dyn Instance, attachment: Attachment, output: Output) -> VmStatus {
        let mut status = instance.status();
        loop {
            if attachment == Attachment::Foreground {
                tell(&status, output);
            }
            if is_end(status.state) {
                return status;
            }
            let seen = status.state;
            instance.wait_change(seen, LOOK);
            let after = instance.status();
            if after.state != seen {
                tracing::info!(state = ?after.state, "state changed");
            }
            status = after;
        }
    }

    fn end(self) {
        let Self {
            server,
            console,
            terminal,
        } = self;
        console.flush(LAST_OUTPUT);
        server.finish();
        console.close();
        drop(terminal);
    }
}

fn tell(status: &VmStatus, output: Output) {
    output.object(status);
    if let (false, VmState::Incoming, Some(listen)) =
        (output.is_json(), status.state, &status.listen)
    {
        eprintln!("vmm: {} listens at {listen}", status.name);
    }
    if status.state == VmState::HandoverUnknown {
        eprintln!(
            "vmm: {0} is paused: run `vmm migrate {0} --resolve` when its destination can be reached",
            status.name
        );
    }
}

pub(super) fn is_end(state: VmState) -> bool {
    matches!(
        state,
        VmState::Stopped | VmState::Migrated | VmState::Failed
    )
}

fn finish(
    dir: &VmDir,
    attachment: Attachment,
    output: Output,
    status: &VmStatus,
) -> Result<Exit, Observation> {
    if status.state != VmState::Failed {
        return Ok(Exit::Done);
    }
    let why = status
        .error
        .clone()
        .unwrap_or_else(|| local("vm.failed", "the guest failed for an unknown reason"));
    tracing::error!(%why, "the VM failed");
    // A `receive` that never had a guest leaves nothing: its source tells the reason.
    if attachment == Attachment::Detached && status.memory_bytes > 0 {
        dir.keep_failed(status)?;
    }
    if attachment == Attachment::Foreground {
        output.error(&why);
    }
    Ok(exit_of(&why))
}
