//! Logs of the process: `vmm.log` of a VM, and standard error by `-v`.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};

use control::rotating_file::RotatingFile;

/// Environment variable that filters logs (`info,migration=debug`) and wins over `-v`.
pub const FILTER_VARIABLE: &str = "VMM_LOG";

/// Bytes of `vmm.log` before it is rotated.
const LOG_LIMIT: u64 = 8 << 20;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Number of `-v`: 0 logs nothing to standard error, then info, debug, trace.
    pub verbose: u8,
    /// How lines look.
    pub format: LogFormat,
}

/// A log file that several threads write to.
#[derive(Debug, Clone)]
struct SharedFile(Arc<Mutex<RotatingFile>>);

/// The log file of this process, if it has one.
static FILE: OnceLock<SharedFile> = OnceLock::new();

impl Write for SharedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SharedFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default))
}

/// Begins logging for this process, to `log` (a VM's `vmm.log`) and to standard error. Does nothing
/// where logging was begun before.
///
/// # Errors
/// What opening the file gives.
pub fn init(options: LogOptions, log: Option<&Path>) -> io::Result<()> {
    let json = options.format == LogFormat::Json;
    let file = match log {
        Some(path) => {
            let file = RotatingFile::create(path, LOG_LIMIT)?;
            let writer = SharedFile(Arc::new(Mutex::new(file)));
            let _first = FILE.set(writer.clone());
            let layer = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(writer);
            Some(if json {
                layer.json().boxed()
            } else {
                layer.boxed()
            })
        }
        None => None,
    };
    let stderr = (options.verbose > 0).then(|| {
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(io::stderr);
        if json {
            layer.json().boxed()
        } else {
            layer.boxed()
        }
    });
    if file.is_none() && stderr.is_none() {
        return Ok(());
    }
    let level = match options.verbose {
        0 | 1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let layers: Vec<_> = file.into_iter().chain(stderr).collect();
    let subscriber = tracing_subscriber::registry()
        .with(layers)
        .with(filter(level));
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Goes on in a new file at `log`, as when the one before was moved away. Does nothing where no log was
/// begun.
///
/// # Errors
/// What opening the file gives; the one before is used then.
pub fn reopen(log: &Path) -> io::Result<()> {
    if let Some(SharedFile(file)) = FILE.get() {
        let new = RotatingFile::create(log, LOG_LIMIT)?;
        *file.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }
    Ok(())
}

/// Lets panics of any thread reach the log before they reach standard error.
pub fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!(panic = %info, "thread panicked");
        before(info);
    }));
}
