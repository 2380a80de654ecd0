//! QEMU's monitor: commands and events as JSON lines over a unix socket (QEMU Machine Protocol
//! Specification).
//!
//! Not by the crate qapi: it does not say when an event came, which is what is measured here, and at
//! each build it makes types of QEMU's whole schema (25 600 lines), of which some fifteen commands are used.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::error::BenchError;
use super::super::guest::ANSWER;
use super::super::interrupt;
use super::super::process::{POLL, Running};

/// Most bytes of a line.
const LINE: u64 = 1 << 20;
/// How often an interruption is looked for while waiting.
const LOOK: Duration = Duration::from_millis(50);

/// A conversation with a QEMU.
pub(super) struct Qmp {
    command: String,
    stream: UnixStream,
    lines: Receiver<(Instant, Value)>,
    events: VecDeque<(Instant, Value)>,
}

impl Qmp {
    /// Connects to the monitor at `path` once the process has made it.
    pub fn connect(process: &mut Running, path: &Path) -> Result<Self, BenchError> {
        let deadline = Instant::now() + ANSWER;
        let stream = loop {
            process.check()?;
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(_) => return Err(process.deadline("its monitor", ANSWER)),
            }
        };
        Self::over(process.command(), stream)
    }

    fn over(command: &str, stream: UnixStream) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Qmp {
            command: command.to_owned(),
            action: "talk".to_owned(),
            source,
        };
        let reader = stream.try_clone().map_err(failed)?;
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("bench-qmp".to_owned())
            .spawn(move || read(reader, &sender))
            .map_err(failed)?;
        let mut qmp = Self {
            command: command.to_owned(),
            stream,
            lines,
            events: VecDeque::new(),
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command; what it returned.
    pub fn execute(&mut self, action: &str, arguments: Value) -> Result<Value, BenchError> {
        let line = json!({ "execute": action, "arguments": arguments });
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|source| self.broken(action, source))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let Some((when, mut line)) = self.next(deadline, action)? else {
                return Err(self.broken(action, io::ErrorKind::TimedOut.into()));
            };
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = line.get("error") {
                let why = error.get("desc").and_then(Value::as_str);
                return Err(self.unexpected(action, why.unwrap_or("an error")));
            }
            if line.get("event").is_some() {
                self.events.push_back((when, line));
            }
        }
    }

    /// Waits for an event that `wanted` finds something in, and says when it came. Events before it
    /// are forgotten. `None` when there is none until `deadline`.
    pub fn wait_event<T>(
        &mut self,
        deadline: Instant,
        wanted: impl Fn(&Event<'_>) -> Option<T>,
    ) -> Result<Option<(Instant, T)>, BenchError> {
        loop {
            let (when, line) = match self.events.pop_front() {
                Some(event) => event,
                None => match self.next(deadline, "wait for an event")? {
                    Some(line) => line,
                    None => return Ok(None),
                },
            };
            let Some(name) = line.get("event").and_then(Value::as_str) else {
                continue;
            };
            let status = line.pointer("/data/status").and_then(Value::as_str);
            let error = line.pointer("/data/error").and_then(Value::as_str);
            let event = Event {
                name,
                status,
                error,
            };
            if let Some(found) = wanted(&event) {
                return Ok(Some((when, found)));
            }
        }
    }

    /// The error that the answer to `action` is not what it should be.
    pub fn unexpected(&self, action: &str, answer: impl ToString) -> BenchError {
        BenchError::QmpAnswer {
            command: self.command.clone(),
            action: action.to_owned(),
            answer: answer.to_string(),
        }
    }

    fn next(
        &mut self,
        deadline: Instant,
        action: &str,
    ) -> Result<Option<(Instant, Value)>, BenchError> {
        loop {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(LOOK)) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.broken(action, io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }

    fn broken(&self, action: &str, source: io::Error) -> BenchError {
        BenchError::Qmp {
            command: self.command.clone(),
            action: action.to_owned(),
            source,
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // Ends the reader; fails only when QEMU is gone, which ends it too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What is looked at of an event.
pub(super) struct Event<'a> {
    /// Its name, as in `MIGRATION`.
    pub name: &'a str,
    /// The status that it tells, where it does.
    pub status: Option<&'a str>,
    /// The error that it tells, where it does.
    pub error: Option<&'a str>,
}

/// Notes when each line came: whoever waits for it may be busy.
fn read(stream: UnixStream, lines: &Sender<(Instant, Value)>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE).read_until(b'\n', &mut line) {
            Ok(1..) if line.ends_with(b"\n") => {}
            // The end, or what is no monitor.
            _ => return,
        }
        let when = Instant::now();
        let Ok(value) = serde_json::from_slice(&line) else {
            return;
        };
        if lines.send((when, value)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that answers each line with the next of `answers`.
    fn monitor(answers: &'static [&'static str]) -> Result<Qmp, BenchError> {
        let (near, far) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            (&far).write_all(b"{\"QMP\": {}}\n").unwrap();
            for answer in answers {
                if !matches!(lines.next(), Some(Ok(_))) {
                    return;
                }
                if (&far).write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Qmp::over("qemu", near)
    }

    #[test]
    fn events_before_an_answer_are_kept_with_their_time() {
        let mut qmp = monitor(&[
            "{\"return\": {}}\n",
            "{\"event\": \"STOP\"}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \
             \"completed\"}}\n{\"return\": {\"port\": 7}}\n",
        ])
        .unwrap();
        assert_eq!(qmp.execute("migrate", json!({})).unwrap()["port"], 7);
        let answered = Instant::now();
        let (when, ()) = qmp
            .wait_event(answered + ANSWER, |event| {
                (event.status == Some("completed")).then_some(())
            })
            .unwrap()
            .unwrap();
        assert!(when <= answered);
    }

    #[test]
    fn refusals_and_broken_monitors_are_told_and_silence_ends() {
        let mut qmp = monitor(&[
            "{\"return\": {}}\n",
            "{\"error\": {\"class\": \"x\", \"desc\": \"not so\"}}\n",
        ])
        .unwrap();
        let error = qmp.execute("migrate", json!({})).unwrap_err();
        assert!(error.to_string().contains("not so"), "{error}");
        let error = qmp.execute("again", json!({})).unwrap_err();
        assert!(matches!(error, BenchError::Qmp { .. }), "{error}");
        assert!(monitor(&["nonsense\n"]).is_err());

        let mut silent = monitor(&["{\"return\": {}}\n", ""]).unwrap();
        let event = silent
            .wait_event(Instant::now(), |_| Some(()))
            .unwrap_or(None);
        assert_eq!(event, None);
    }
}
