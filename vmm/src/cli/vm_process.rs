//! The process of a VM, from its folder to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::api::{ControlServer, Hangup};
use control::exit::{Exit, exit_of, local};
use control::instance::{Instance, Requester, StopMode, VmState, VmStatus};
use control::rotating_file::RotatingFile;
use control::runtime_dir::{Naming, VmDir};
use control::signals;
use machine::console::{ConsoleHub, ConsoleOutputs, SERIAL_LOG_LIMIT};
use machine::memory::RamFile;
use migration::observation::Observation;
use migration::wire::control::Resolution;

use super::detach;
use super::terminal::{Keys, RawTerminal, may_read, read_keys};
use crate::logging::{self, LogOptions};
use crate::sandbox::{self, Kind, Places, Sandbox};
use control::output::{Output, explain};

/// How long the console may take to write its last bytes.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How long one look for a new state may take.
const LOOK: Duration = Duration::from_secs(3600);
/// Migrations that fail and leave a VM waiting are told no more often: strangers can bring that about.
const QUIET: Duration = Duration::from_secs(1);

/// Who sees the guest's console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attachment {
    /// This terminal.
    Foreground,
    /// Nobody until they attach; the parent waits for the announcement.
    Detached,
}

impl Attachment {
    /// Keeps signals that ask for nothing from ending this process, which is to be that of a VM and has no
    /// other threads yet.
    ///
    /// # Errors
    /// `host.resources`.
    pub(super) fn outlive_signals(self) -> Result<(), Observation> {
        let ignored = signals::outlive_meaningless().and_then(|()| match self {
            // Until the logs are there that it has opened again.
            Self::Detached => signals::ignore(libc::SIGHUP),
            Self::Foreground => Ok(()),
        });
        ignored.map_err(|e| local("host.resources", format!("ignore signals: {e}")))
    }
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

/// Starts the VM that `launch` builds, and serves it until it ends.
pub(super) fn run_vm(
    dir: VmDir,
    attachment: Attachment,
    confined: Confined,
    log: LogOptions,
    output: Output,
    launch: impl FnOnce(&VmDir, &ConsoleHub, RamFile) -> Result<Arc<dyn Instance>, Observation>,
) -> Result<Exit, Observation> {
    let started = start(&dir, attachment, &confined, log, output, launch);
    let (services, instance) = match started {
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
    let status = services.follow(&*instance, attachment, output);
    let refused = sandbox::refusals();
    if refused > 0 {
        tracing::warn!(refused, "the sandbox refused system calls of this VM");
    }
    // Everything that the VM had is free before anybody hears of its end.
    instance.close_door();
    services.console.flush(LAST_OUTPUT);
    let why = failure(&status);
    part(&dir, &status);
    instance.tell_end();
    if attachment == Attachment::Foreground {
        tell(&status, output);
    }
    services.end();
    drop(instance);
    let Some(why) = why else {
        return Ok(Exit::Done);
    };
    if attachment == Attachment::Foreground {
        output.error(&why);
    }
    Ok(exit_of(&why))
}

/// What serves the VM beside the machine.
struct Services {
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
) -> Result<(Services, Arc<dyn Instance>), Observation> {
    let failed = |what: &str, e: std::io::Error| local("host.runtime-dir", format!("{what}: {e}"));
    logging::init(log, Some(&dir.vmm_log())).map_err(|e| failed("begin the log", e))?;
    logging::log_panics();
    // A confined process may not mount.
    let file = RamFile::on_own_tmpfs().unwrap_or_else(|e| {
        tracing::debug!(error = %e, "RAM lies in a memfd: no tmpfs of its own");
        RamFile::memfd()
    });
    confined.enter(dir)?;
    // Who finds the control socket finds this one, too.
    let files = dir.bind_files()?;
    let control = dir.bind_control()?;
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
    let mut server = ControlServer::start(control, files, at_hangup(dir, &console, attachment))
        .map_err(|e| failed("serve the control socket", e))?;
    let instance = launch(dir, &console, file)?;
    tracing::info!(name = dir.name(), "the VM is up");
    server.serve(Arc::clone(&instance));
    let mut services = Services {
        server,
        console,
        terminal: None,
    };
    match attachment {
        Attachment::Detached => {
            if let Err(why) = detach::announce_up(&instance.own_status(), dir) {
                // Nobody knows of this VM: end it.
                let _ = instance.stop(StopMode::Force, Requester::Holder);
                instance.close_door();
                instance.tell_end();
                services.end();
                return Err(why);
            }
        }
        Attachment::Foreground => {
            if shown && may_read() {
                services.terminal = RawTerminal::enter();
                services.type_to_guest();
            }
        }
    }
    Ok((services, instance))
}

/// What a hang-up does: nobody's terminal is one of a detached VM.
fn at_hangup(dir: &VmDir, console: &ConsoleHub, attachment: Attachment) -> Hangup {
    let (dir, console) = (dir.clone(), console.clone());
    match attachment {
        Attachment::Foreground if signals::is_ignored(libc::SIGHUP) => Hangup::Ignored,
        Attachment::Foreground => Hangup::Stops,
        Attachment::Detached => {
            Hangup::Reopens(Arc::new(move || match reopen_logs(&dir, &console) {
                Ok(()) => tracing::info!("the logs were opened again"),
                Err(e) => tracing::error!(error = %e, "the logs cannot be opened again"),
            }))
        }
    }
}

fn reopen_logs(dir: &VmDir, console: &ConsoleHub) -> std::io::Result<()> {
    logging::reopen(&dir.vmm_log())?;
    detach::follow_log(dir)?;
    console.set_log(RotatingFile::create(&dir.serial_log(), SERIAL_LOG_LIMIT)?);
    Ok(())
}

fn own_stdout() -> std::io::Result<OwnedFd> {
    std::io::stdout().as_fd().try_clone_to_owned()
}

impl Services {
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

    /// Waits until the VM has ended and tells what happens meanwhile; its last status, which is not told
    /// yet.
    fn follow(&self, instance: &dyn Instance, attachment: Attachment, output: Output) -> VmStatus {
        let mut told: Option<(VmState, Instant)> = None;
        loop {
            let status = instance.own_status();
            // A failure soon after another waits: of many, the last is told.
            let quiet = match told {
                Some((state, at)) if state == status.state => QUIET.saturating_sub(at.elapsed()),
                _ => Duration::ZERO,
            };
            if quiet.is_zero() {
                if attachment == Attachment::Foreground && !status.state.is_final() {
                    tell(&status, output);
                }
                tracing::info!(state = ?status.state, "state told");
                told = Some((status.state, Instant::now()));
            }
            let look = if quiet.is_zero() { LOOK } else { quiet };
            if let Some(last) = instance.wait_end(&status, look) {
                tracing::info!(state = ?last.state, end = ?last.end, "the VM has ended");
                return last;
            }
        }
    }

    fn end(self) {
        let Self {
            server,
            console,
            terminal,
        } = self;
        server.finish();
        console.close();
        drop(terminal);
    }
}

fn tell(status: &VmStatus, output: Output) {
    output.object(status);
    let name = &status.name;
    match (status.state, &status.listen) {
        (VmState::Incoming, Some(listen)) => {
            if let Some(why) = &status.last_failure {
                eprint!("vmm: {}", explain(why));
                eprintln!("vmm: {name} goes on waiting at {listen}");
            } else if !output.is_json() {
                eprintln!("vmm: {name} listens at {listen}");
            }
        }
        (VmState::HandoverUnknown, _) => eprintln!(
            "vmm: {name} is paused until its destination answers whether it runs there; \
             `vmm migrate {name} --resolve` asks at once"
        ),
        (VmState::Running | VmState::Paused, _) if never_ran(status) => {
            eprintln!("vmm: {name} goes on here: it never ran at its destination");
        }
        _ => {}
    }
}

/// Why a VM failed that has ended so.
fn failure(status: &VmStatus) -> Option<Observation> {
    if status.state != VmState::Failed {
        return None;
    }
    let unknown = || local("vm.failed", "the guest failed for an unknown reason");
    let why = status.error.clone().unwrap_or_else(unknown);
    tracing::error!(%why, "the VM failed");
    Some(why)
}

fn never_ran(status: &VmStatus) -> bool {
    let resolution = status.migration.as_ref().and_then(|m| m.resolution);
    resolution == Some(Resolution::NeverRan)
}

/// Lets go of the folder of a VM that has ended. Its end is kept under its name, unless there is nothing to
/// tell: a `receive` that had neither a guest nor a name of its own tells its source.
fn part(dir: &VmDir, status: &VmStatus) {
    if status.memory_bytes == 0 && dir.naming() == Naming::Found {
        dir.close();
    } else {
        dir.close_as(status);
    }
}
