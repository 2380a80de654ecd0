//! What the command line prints: lines for people, or one JSON object a line.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::OnceLock;

use migration::observation::{Observation, Side};
use serde::Serialize;

use crate::exit::{Exit, exit_of};

/// Set once something could not be written to standard output.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Writes to standard output; a reader that is gone is no error, anything else is kept for [`lost`].
pub fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    if let Err(error) = written {
        lose(error);
    }
}

/// Notes that something did not reach standard output; that its reader is gone is no loss.
pub fn lose(error: io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        let _first = LOST.set(error);
    }
}

/// Why not all that this process had to say reached standard output.
pub fn lost() -> Option<Observation> {
    let error = LOST.get()?;
    let message = format!("not all of the output could be written: {error}");
    Some(Observation::new(Side::Client, "output.write", message))
}

/// The two audiences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Output {
    /// For programs where `json` was asked for.
    pub fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }

    /// Whether programs read it.
    pub fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Prints an object to programs.
    pub fn object(self, object: &impl Serialize) {
        if self.is_json()
            && let Ok(line) = serde_json::to_string(object)
        {
            print(&format!("{line}\n"));
        }
    }

    /// Prints a line to people.
    pub fn line(self, line: impl AsRef<str>) {
        if !self.is_json() {
            print(&format!("{}\n", line.as_ref()));
        }
    }

    /// Prints one object to programs, or one line to people.
    pub fn either(self, object: &impl Serialize, line: impl AsRef<str>) {
        self.object(object);
        self.line(line);
    }

    /// Says why it did not work: always on standard error, to programs on standard output too.
    pub fn error(self, observation: &Observation) {
        self.error_with(observation, exit_of(observation));
    }

    /// As [`Output::error`], for a process that ends with `exit`.
    pub fn error_with(self, observation: &Observation, exit: Exit) {
        self.object(&serde_json::json!({
            "error": observation,
            "exit_code": exit as u8,
        }));
        let _ = write!(io::stderr(), "vmm: {}", explain(observation));
    }
}

/// An observation and what explains it, one line each, with the side that saw it where that changes.
pub fn explain(observation: &Observation) -> String {
    let mut text = String::new();
    explain_into(&mut text, observation, 0, observation.side);
    text
}

fn explain_into(text: &mut String, observation: &Observation, depth: usize, told: Side) {
    if depth > 0 {
        text.push_str(&"  ".repeat(depth.min(8)));
        text.push_str("because ");
    }
    if observation.side != told {
        text.push_str(match observation.side {
            Side::Source => "at the source ",
            Side::Destination => "at the destination ",
            Side::Client => "here ",
        });
    }
    let mut line = observation.message.clone();
    if let (Some(phase), 0) = (&observation.phase, depth) {
        let _ = write!(line, " (in phase {phase})");
    }
    let _ = write!(line, " [{}]", observation.id);
    // What a peer or a guest wrote must not steer the terminal.
    text.extend(line.chars().map(|c| if c.is_control() { ' ' } else { c }));
    text.push('\n');
    if depth < 32 {
        for cause in &observation.causes {
            explain_into(text, cause, depth + 1, observation.side);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_sides_and_cannot_steer_a_terminal() {
        let root = Observation::new(Side::Destination, "disk.open", "open \u{1b}[2J/d");
        let top = Observation::new(Side::Source, "migration.refused", "refused")
            .in_phase("prepare")
            .caused_by(root);
        assert_eq!(
            explain(&top),
            "refused (in phase prepare) [migration.refused]\n  because at the destination open  \
             [2J/d [disk.open]\n"
        );
    }
}
