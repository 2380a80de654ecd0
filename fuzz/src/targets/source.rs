//! A whole source, from its hello to the end of its guest, with a destination that says anything.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use migration::journal::{Handover, Journal, MemoryJournal};
use migration::progress::Verify;
use migration::request::MigrateRequest;
use migration::source::{self, Options};
use migration::steering::Steering;
use migration::transport::{Connect, Connection, Patience};
use migration::units::Span;
use migration::vm::{
    DirtyMemory, MachineDescription, RunState, SourceDisks, SourceMachine, VmResult,
};
use migration::wire::control::{CONTROL_LEN, Message, Ready, Welcome};
use migration::{GuestRam, HostId, MigrationId, Outcome};
use vm_memory::{Bytes, GuestAddress};

use super::script::{Line, Pace, Part, Scripted, Watch, kind};
use super::wire::{every_message, frame, kind_of, negotiate};
use crate::input::counted;
use crate::{Input, Memory, Target};

/// What a destination says.
pub(super) const SOURCE: Target = Target {
    name: "source",
    run,
    seeds,
    words: &[
        "\"version\":",
        "\"token\":",
        "\"host\":",
        "\"never-ran\"",
        "\"ran\"",
        "null",
    ],
    longest: 1024,
    memory: Memory {
        base: 8 << 20,
        per_byte: 4 << 10,
    },
};

const ID: MigrationId = MigrationId([6; 16]);

/// A source's VM that notes what is done to it.
struct Vm {
    ram: GuestRam,
    running: AtomicBool,
    logging: AtomicBool,
    offered: AtomicBool,
    released: AtomicBool,
}

impl Vm {
    fn new() -> Self {
        let regions: Vec<_> = negotiate(1)
            .machine
            .ram
            .iter()
            .map(|region| (GuestAddress(region.gpa), region.len as usize))
            .collect();
        let ram = GuestRam::from_ranges(&regions).expect("guest memory");
        let written = ram.write_slice(&[1; 64], GuestAddress(0x3000));
        written.expect("guest memory");
        Self {
            ram,
            running: AtomicBool::new(true),
            logging: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }

    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }

    fn set(flag: &AtomicBool, to: bool) -> VmResult<()> {
        flag.store(to, Ordering::SeqCst);
        Ok(())
    }
}

impl SourceMachine for Vm {
    fn describe(&self) -> VmResult<MachineDescription> {
        Ok(negotiate(1).machine)
    }

    fn run_state(&self) -> RunState {
        RunState::Running
    }

    fn pause(&self) -> VmResult<()> {
        Self::set(&self.running, false)
    }

    fn resume(&self) -> VmResult<()> {
        assert!(!Self::is(&self.released), "a guest that is gone is resumed");
        Self::set(&self.running, true)
    }

    fn save_state(&self) -> VmResult<Vec<u8>> {
        assert!(!Self::is(&self.running), "a running guest is saved");
        Ok(vec![7; 100])
    }
}

impl DirtyMemory for Vm {
    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn start_dirty_log(&self) -> VmResult<()> {
        Self::set(&self.logging, true)
    }

    fn stop_dirty_log(&self) -> VmResult<()> {
        Self::set(&self.logging, false)
    }

    fn read_vcpu_writes(&self, dirty: &mut [Vec<u64>]) -> VmResult<()> {
        dirty[0][0] |= 1 << 3;
        Ok(())
    }

    fn take_device_writes(&self, _: &mut [Vec<u64>]) -> VmResult<()> {
        Ok(())
    }

    fn drop_device_writes(&self) -> VmResult<()> {
        Ok(())
    }

    fn clear_vcpu_writes(&self, _: usize, _: u64, _: &[u64]) -> VmResult<()> {
        Ok(())
    }
}

impl SourceDisks for Vm {
    fn offer_disks(&self) -> VmResult<()> {
        Self::set(&self.offered, true)
    }

    fn reclaim_disks(&self) -> VmResult<()> {
        Self::set(&self.offered, false)
    }

    fn hand_over_disks(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

/// Takes connections in: the first is the control connection, the next ones are for data, and any
/// other asks what became of the guest.
struct Peer {
    watch: Watch,
    control: Mutex<Vec<Line>>,
    answers: Mutex<Vec<Vec<u8>>>,
    made: Mutex<usize>,
}

impl Connect for Peer {
    fn connect(&self, _: Patience<'_>) -> io::Result<Box<dyn Connection>> {
        let number = {
            let mut made = self.made.lock().expect("no panic");
            *made += 1;
            *made
        };
        let lines = std::mem::take(&mut *self.control.lock().expect("no panic"));
        let asked = self.watch.seen().has(kind::COMMIT);
        let connection = match number {
            1 => Scripted::new(&self.watch, Part::Control, lines),
            _ if !asked => Scripted::new(&self.watch, Part::Data, []),
            _ => match self.answers.lock().expect("no panic").pop() {
                Some(answer) => Scripted::new(&self.watch, Part::Stranger, [Line::now(answer)]),
                None => return Err(io::ErrorKind::ConnectionRefused.into()),
            },
        };
        Ok(Box::new(connection))
    }

    fn address(&self) -> String {
        "script".into()
    }
}

/// A frame that waits until it answers something.
fn in_turn(frame: Vec<u8>, passes: &mut usize, streams: usize) -> Line {
    match kind_of(&frame) {
        kind::NEGOTIATED => Line::after(|seen| seen.has(kind::NEGOTIATE), frame),
        kind::PREPARED => Line::after(|seen| seen.has(kind::PREPARE), frame),
        kind::PASS_PLACED => {
            *passes += 1;
            let sent = *passes * streams;
            Line::after(move |seen| seen.passes >= sent, frame)
        }
        kind::READY => Line::after(|seen| seen.has(kind::LAST_PASS), frame),
        kind::COMMITTED => Line::after(|seen| seen.has(kind::COMMIT), frame),
        _ => Line::now(frame),
    }
}

fn usual(which: u8) -> Vec<u8> {
    let message = match which % 24 {
        18..20 => Message::Welcome(Welcome {
            version: 1,
            token: [7; 16],
            host: None,
            capabilities: None,
            placed: None,
        }),
        20.. => Message::PassPlaced(migration::wire::control::PassPlaced {
            pass: u32::from(which % 24) - 18,
            flush_us: None,
        }),
        which => every_message().swap_remove(which.into()),
    };
    message.encode().unwrap_or_default()
}

fn run(bytes: &[u8]) {
    migrate(bytes, Pace::SHORT);
}

/// A source against the destination that an input means; how it ended.
fn migrate(bytes: &[u8], pace: Pace) -> Outcome {
    let mut input = Input::new(bytes);
    let options = input.u8();
    let streams = 1 + options % 2;
    let mut lines = Vec::new();
    let mut answers = Vec::new();
    let mut passes = 0;
    while !input.is_empty() {
        match input.u8() % 4 {
            0 => {
                let kind = input.u8() % 24;
                let frame = frame(kind.into(), input.counted());
                lines.push(in_turn(frame, &mut passes, streams.into()));
            }
            1 => lines.push(in_turn(usual(input.u8()), &mut passes, streams.into())),
            2 => lines.push(Line::now(input.counted().to_vec())),
            _ => {
                let kind = input.u8() % 24;
                answers.push(frame(kind.into(), input.counted()));
            }
        }
    }
    let peer = Peer {
        watch: Watch::new(pace),
        control: Mutex::new(lines),
        answers: Mutex::new(answers),
        made: Mutex::new(0),
    };
    let request = MigrateRequest {
        streams: Some(streams),
        verify: if options & 4 == 0 {
            Verify::Off
        } else {
            Verify::Stream
        },
        plan: options & 8 != 0,
        // No longer than one answer is waited for.
        reconnect_for: Span(if options & 16 == 0 {
            Duration::ZERO
        } else {
            pace.peer
        }),
        ..MigrateRequest::new("unix:/there")
    };
    let options = Options {
        io_timeout: pace.peer,
        peer_timeout: pace.peer,
        prepare_timeout: pace.peer,
        resolve_for: Duration::ZERO,
        ..Options::new(ID, request)
    };
    let journal = MemoryJournal::default();
    let vm = Vm::new();
    let outcome = source::migrate(&vm, &peer, &options, &Steering::new(), &journal);
    judge(&outcome, &vm, &journal);
    outcome
}

/// The guest is here as if nothing had been tried, or gone, or held because nobody knows.
fn judge(outcome: &Outcome, vm: &Vm, journal: &MemoryJournal) {
    let running = Vm::is(&vm.running);
    let released = Vm::is(&vm.released);
    let recorded = journal
        .recorded(ID)
        .ok()
        .flatten()
        .map(|record| record.handover);
    match outcome {
        Outcome::Completed(_) => {
            assert_eq!((running, released), (false, true));
            assert_eq!(recorded, Some(Handover::Gone));
        }
        Outcome::HandoverUnknown(_) => {
            assert_eq!((running, released), (false, false));
            assert_eq!(recorded, Some(Handover::CommitSent));
        }
        Outcome::Planned(_) => assert_eq!((running, released), (true, false)),
        Outcome::Failed(_) | Outcome::Cancelled(_) => {
            assert_eq!((running, released), (true, false));
            assert!(!Vm::is(&vm.logging) && !Vm::is(&vm.offered));
            assert_ne!(recorded, Some(Handover::CommitSent));
        }
    }
    if let Some(error) = &outcome.report().error {
        let told = control::output::explain(error);
        assert!(told.chars().all(|c| c == '\n' || !c.is_control()));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let message = |op: u8, message: Message| {
        let frame = message.encode().unwrap_or_default();
        let kind = kind_of(&frame) as u8;
        [&[op, kind][..], &counted(&frame[CONTROL_LEN..])].concat()
    };
    let ready = message(
        0,
        Message::Ready(Ready {
            digest: None,
            disks_digest: None,
            whole_disks: Vec::new(),
            load_ms: 0.5,
        }),
    );
    // Indices into `every_message`: 0 welcome, 2 negotiated, 4 prepared, 6 pass placed, 11 committed.
    let start = vec![1, 0, 1, 2, 1, 4, 1, 6, 1, 20, 1, 21];
    let upto_commit = [&[0][..], &start, &ready].concat();
    let whole = [&upto_commit[..], &[1, 11]].concat();
    // The link of `upto_commit` ends while the commit may be on its way, or before: either is right.
    let garbled = [
        &upto_commit[..],
        &[0, kind::COMMITTED as u8],
        &counted(b"{"),
    ]
    .concat();
    let answer = every_message().swap_remove(16);
    let welcome = message(
        0,
        Message::Welcome(Welcome {
            version: 2,
            token: [1; 16],
            host: Some(HostId([3; 16])),
            capabilities: None,
            placed: None,
        }),
    );
    vec![
        whole,
        [&garbled[..], &message(3, answer)].concat(),
        garbled,
        [&[0][..], &start].concat(),
        [&[4][..], &start, &ready].concat(),
        vec![8, 1, 0, 1, 2],
        upto_commit,
        [
            &[0][..],
            &welcome,
            &message(0, every_message().swap_remove(13)),
        ]
        .concat(),
        vec![0, 1, 18, 1, 2, 1, 13],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_a_destination_lead_to_every_end() {
        let ends: Vec<_> = seeds()
            .iter()
            .map(|seed| migrate(seed, Pace::LONG))
            .collect();
        assert!(matches!(ends[0], Outcome::Completed(_)), "{:?}", ends[0]);
        assert!(matches!(ends[1], Outcome::Completed(_)), "{:?}", ends[1]);
        assert!(
            matches!(ends[2], Outcome::HandoverUnknown(_)),
            "{:?}",
            ends[2]
        );
        for end in &ends[3..5] {
            assert!(matches!(end, Outcome::Failed(_)), "{end:?}");
        }
        assert!(matches!(ends[5], Outcome::Planned(_)), "{:?}", ends[5]);
    }
}
