//! `vmm logs`.

use std::io::{self, Write};
use std::time::Duration;

use control::exit::{Exit, local};
use control::runtime_dir::{Log, RuntimeDir};
use migration::observation::Observation;
use serde::Serialize;

use control::output::Output;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a line, after which it is cut for programs.
const LINE_LIMIT: usize = 64 << 10;

/// How long a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// What there is.
    Now,
    /// The VM has ended.
    End,
}

pub(super) fn run(
    name: &str,
    log: Log,
    until: Until,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let mut reader = runtime.log(name, log)?;
    let mut out = Printer::new(output);
    let copied = (|| {
        loop {
            let more = until == Until::End && reader.is_live()?;
            reader.copy(&mut out)?;
            out.flush()?;
            if !more {
                return out.end();
            }
            std::thread::sleep(LOOK);
        }
    })();
    match copied {
        // Whoever read it has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(e) => Err(local("vm.logs", format!("the log of {name:?}: {e}"))),
        Ok(()) => Ok(Exit::Done),
    }
}

/// A line of a log, to programs.
#[derive(Serialize)]
struct Line<'a> {
    line: &'a str,
}

/// Standard output: the bytes for people, an object for each line for programs.
enum Printer {
    Bytes(io::Stdout),
    Lines { out: io::Stdout, begun: Vec<u8> },
}

impl Printer {
    fn new(output: Output) -> Self {
        let out = io::stdout();
        if output.is_json() {
            Self::Lines {
                out,
                begun: Vec::new(),
            }
        } else {
            Self::Bytes(out)
        }
    }

    /// Prints what has no end of line.
    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Lines { out, begun } if !begun.is_empty() => print(out, begun)?,
            _ => {}
        }
        self.flush()
    }
}

fn print(out: &mut io::Stdout, line: &[u8]) -> io::Result<()> {
    let line = String::from_utf8_lossy(line);
    serde_json::to_writer(&mut *out, &Line { line: &line })?;
    out.write_all(b"\n")
}

impl Write for Printer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(out) => return out.write(bytes),
            Self::Lines { out, begun } => {
                for byte in bytes {
                    if *byte == b'\n' || begun.len() >= LINE_LIMIT {
                        let line = begun.strip_suffix(b"\r").unwrap_or(begun);
                        print(out, line)?;
                        begun.clear();
                    }
                    if *byte != b'\n' {
                        begun.push(*byte);
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Bytes(out) | Self::Lines { out, .. } => out.flush(),
        }
    }
}
