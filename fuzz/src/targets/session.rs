//! A whole destination, from the first hello to the guest's start, with a source that says anything.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use migration::destination::{self, Options};
use migration::journal::{Decision, Journal, MemoryJournal};
use migration::observation::{Observation, Side};
use migration::steering::Steering;
use migration::transport::{Connection, Listen};
use migration::vm::{
    DestinationDisks, DestinationMachine, DestinationMemory, MachineDescription, VmResult,
};
use migration::wire::batch::{BatchHeader, Encoding, PageRange};
use migration::wire::control::{CONTROL_LEN, Intent, Message};
use migration::wire::hello::{HELLO_LEN, Hello, Role};
use migration::{GuestRam, MigrationId, Outcome, PAGE_SIZE};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use super::script::{Line, Pace, Part, Scripted, Seen, Watch, kind};
use super::wire::{every_message, frame, kind_of, negotiate, seal};
use crate::input::counted;
use crate::{Input, Memory, Target};

/// What a source says on all of its connections.
pub(super) const SESSION: Target = Target {
    name: "session",
    run,
    seeds,
    words: &[
        "\"streams\":",
        "\"len\":",
        "\"gpa\":",
        "65536",
        "4294967296",
    ],
    longest: 2048,
    // Frames are read in pieces of 1 MiB; each stream has tables of 512 ranges and the pages' hashes.
    memory: Memory {
        base: 8 << 20,
        per_byte: 4 << 10,
    },
};

const ID: MigrationId = MigrationId([6; 16]);
/// Data connections that a script can have.
const STREAMS: usize = 3;
/// Most RAM that the VM here agrees to.
const MOST_RAM: u64 = 1 << 20;

/// A destination's VM that only notes what is done to it.
#[derive(Default)]
struct Vm {
    ram: Option<GuestRam>,
    prepared: usize,
    abandoned: usize,
    loaded: bool,
    started: usize,
}

fn refuse(message: &str) -> Observation {
    Observation::new(Side::Destination, "test.refused", message)
}

impl DestinationMachine for Vm {
    fn negotiate(&mut self, description: &MachineDescription) -> VmResult<()> {
        let total: u64 = description.ram.iter().map(|region| region.len).sum();
        if total > MOST_RAM {
            return Err(refuse("too much memory"));
        }
        Ok(())
    }

    fn prepare(&mut self, description: &MachineDescription) -> VmResult<()> {
        self.prepared += 1;
        let regions: Vec<_> = description
            .ram
            .iter()
            .map(|region| (GuestAddress(region.gpa), region.len as usize))
            .collect();
        self.ram = Some(GuestRam::from_ranges(&regions).map_err(|e| refuse(&e.to_string()))?);
        Ok(())
    }

    fn load_state(&mut self, state: &[u8]) -> VmResult<()> {
        if state.first() == Some(&0xff) {
            return Err(refuse("a bad state"));
        }
        self.loaded = true;
        Ok(())
    }

    fn start(&mut self) -> VmResult<()> {
        self.started += 1;
        Ok(())
    }

    fn take_over_paused(&mut self) -> VmResult<()> {
        self.start()
    }

    fn abandon(&mut self) {
        self.abandoned += 1;
        self.ram = None;
    }
}

impl DestinationMemory for Vm {
    fn ram(&self) -> VmResult<GuestRam> {
        self.ram.clone().ok_or_else(|| refuse("not prepared"))
    }
}

impl DestinationDisks for Vm {}

/// Gives out the connections of a script: strangers, the control connection, and the data
/// connections once their secret is known.
struct Peer {
    watch: Watch,
    first: Mutex<Vec<Scripted>>,
    data: Mutex<Vec<(u16, Vec<Line>)>>,
}

impl Listen for Peer {
    fn accept(&self, timeout: Duration) -> io::Result<Option<Box<dyn Connection>>> {
        if let Some(connection) = self.first.lock().expect("no panic").pop() {
            return Ok(Some(Box::new(connection)));
        }
        // A source connects for data when the machine is there.
        let ready = |seen: &Seen| seen.has(kind::PREPARED) || seen.closed;
        if !self.watch.wait(timeout, ready) {
            return Ok(None);
        }
        let token = self.watch.seen().token;
        match (token, self.data.lock().expect("no panic").pop()) {
            (Some(token), Some((stream, mut lines))) => {
                let hello = Hello::new(Role::Data { stream }, ID, token);
                lines.insert(0, Line::now(hello.encode().to_vec()));
                let connection = Scripted::new(&self.watch, Part::Data, lines);
                // Counted from the start, when it was planned.
                self.watch.change(|seen| seen.busy -= 1);
                Ok(Some(Box::new(connection)))
            }
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn address(&self) -> String {
        "script".into()
    }
}

/// What an input means.
#[derive(Default)]
struct Plan {
    control: Vec<Line>,
    data: [Vec<Line>; STREAMS],
    strangers: Vec<Vec<u8>>,
}

impl Plan {
    fn say(&mut self, frame: Vec<u8>) {
        // What it answers, without which it is refused.
        let answers = match kind_of(&frame) {
            kind::NEGOTIATE => Some(kind::WELCOME),
            kind::PREPARE | kind::PLAN_END => Some(kind::NEGOTIATED),
            kind::EXTENTS | kind::STATE => Some(kind::PREPARED),
            kind::COMMIT => Some(kind::READY),
            kind::FINISH | kind::LATE => Some(kind::COMMITTED),
            _ => None,
        };
        let line = match answers {
            Some(kind) => Line::after(move |seen| seen.has(kind), frame),
            None => Line::now(frame),
        };
        self.control.push(line);
    }

    fn read(input: &mut Input<'_>) -> Self {
        let mut plan = Self::default();
        let hello = Hello::new(Role::Control, ID, [0; 16]).encode().to_vec();
        plan.control.push(Line::now(hello));
        while !input.is_empty() {
            let op = input.u8();
            let stream = usize::from(op >> 4) % STREAMS;
            match op % 8 {
                0 => {
                    let kind = input.u8() % 24;
                    plan.say(frame(kind.into(), input.counted()));
                }
                1 => plan.say(usual(input.u8())),
                2 => plan.control.push(Line::now(input.counted().to_vec())),
                3 | 4 => plan.data[stream].push(Line::now(pages(input))),
                5 => {
                    let end = BatchHeader::pass_end(input.u8().into());
                    plan.data[stream].push(Line::now(end.as_bytes().to_vec()));
                }
                6 => plan.data[stream].push(Line::now(input.counted().to_vec())),
                _ => {
                    let mut hello: [u8; HELLO_LEN] = input.array();
                    seal(&mut hello, HELLO_LEN - 8);
                    plan.strangers.push([&hello[..], input.counted()].concat());
                }
            }
        }
        plan
    }
}

/// What a good source says.
fn usual(which: u8) -> Vec<u8> {
    let streams = which >> 5;
    let message = match which % 32 {
        0 => Message::Negotiate(Box::new(negotiate(streams))),
        1 => {
            let mut plan = negotiate(1);
            plan.intent = Intent::Plan;
            Message::Negotiate(Box::new(plan))
        }
        which => every_message().swap_remove(usize::from(which) % 20),
    };
    message.encode().unwrap_or_default()
}

/// A batch of pages, with as much payload as its ranges say.
fn pages(input: &mut Input<'_>) -> Vec<u8> {
    let pass = u32::from(input.u8());
    let count = usize::from(input.u8() % 4);
    let mut ranges = Vec::new();
    for _ in 0..count {
        let page = u64::from(input.u8());
        let base = if page & 128 == 0 { 0 } else { 4 << 30 };
        let gpa = base + (page & 127) * (PAGE_SIZE / 2) * 2;
        let encoding = if input.u8() & 1 == 0 {
            Encoding::Raw
        } else {
            Encoding::Zero
        };
        ranges.push(PageRange::new(gpa, u32::from(input.u8() % 20), encoding));
    }
    let header = BatchHeader::of(pass, &ranges);
    let payload: u64 = ranges.iter().map(PageRange::payload).sum();
    let mut bytes = [header.as_bytes(), ranges.as_bytes()].concat();
    bytes.resize(bytes.len() + payload as usize, 0x5a);
    bytes
}

fn run(bytes: &[u8]) {
    receive(bytes, Pace::SHORT);
}

/// A destination against the source that an input means; how it ended.
fn receive(bytes: &[u8], pace: Pace) -> Outcome {
    let Plan {
        control,
        data,
        strangers,
    } = Plan::read(&mut Input::new(bytes));
    let watch = Watch::new(pace);
    let mut first = vec![Scripted::new(&watch, Part::Control, control)];
    for stranger in strangers {
        first.push(Scripted::new(&watch, Part::Stranger, [Line::now(stranger)]));
    }
    let data: Vec<_> = data
        .into_iter()
        .enumerate()
        .filter(|(_, lines)| !lines.is_empty())
        .map(|(stream, lines)| (stream as u16, lines))
        .rev()
        .collect();
    watch.change(|seen| seen.busy = data.len());
    let peer = Peer {
        watch,
        first: Mutex::new(first),
        data: Mutex::new(data),
    };
    let options = Options {
        io_timeout: pace.peer,
        peer_timeout: pace.peer,
        hello_timeout: pace.peer,
        progress_timeout: pace.peer * 2,
        answer_for: pace.peer,
        keep_at_most: pace.peer,
        max_inbound: None,
    };
    let journal = MemoryJournal::default();
    let mut vm = Vm::default();
    let outcome = destination::receive(&peer, &mut vm, &options, &Steering::new(), &journal);
    judge(&outcome, &vm, journal.decision(ID).ok().flatten());
    outcome
}

/// The guest was started once, and only after a recorded commit; or nothing is left of it.
fn judge(outcome: &Outcome, vm: &Vm, decision: Option<Decision>) {
    let report = outcome.report();
    match outcome {
        Outcome::Completed(_) => {
            assert_eq!((vm.started, vm.loaded), (1, true));
            assert_eq!(decision, Some(Decision::Commit));
            assert!(report.error.is_none());
        }
        Outcome::Failed(_) | Outcome::Cancelled(_) => {
            assert_eq!(vm.started, 0);
            assert_ne!(decision, Some(Decision::Commit));
            assert!(vm.ram.is_none(), "memory is left");
            assert!(vm.prepared == 0 || vm.abandoned > 0);
            let error = report.error.as_ref().expect("a reason");
            let told = control::output::explain(error);
            assert!(told.chars().all(|c| c == '\n' || !c.is_control()));
        }
        // A plan goes on until somebody migrates; the journal and the VM here never fail.
        Outcome::Planned(_) | Outcome::HandoverUnknown(_) => panic!("{outcome:?}"),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let say = |which: u8| vec![1, which];
    let message = |message: Message| {
        let frame = message.encode().unwrap_or_default();
        let kind = kind_of(&frame) as u8;
        [&[0, kind][..], &counted(&frame[CONTROL_LEN..])].concat()
    };
    let state = message(Message::State(vec![1; 40]));
    let usual = |index: u8| say(index + 18 * u8::from(index < 2));
    // Indices into `every_message`: 3 prepare, 5 extents, 7 last pass, 10 commit, 12 finish.
    let mut whole = [say(1 << 5), usual(3), usual(5)].concat();
    whole.extend([3, 1, 2, 0, 0, 4, 128, 1, 16, 5, 1]);
    whole.extend(&state);
    whole.extend([usual(7), usual(10), usual(12)].concat());
    let mut two = [say(2 << 5), usual(3)].concat();
    two.extend([3, 1, 1, 0, 0, 2, 5, 1, 0x13, 1, 1, 128, 0, 2, 0x15, 1]);
    two.extend(&state);
    two.extend([usual(7), usual(10)].concat());
    let spelled = message(Message::Negotiate(Box::new(negotiate(1))));
    let asks = |id| {
        let mut stranger = vec![7];
        stranger.extend(Hello::new(Role::Resolve, id, [0; 16]).encode());
        stranger.extend(counted(b""));
        stranger
    };
    vec![
        whole.clone(),
        two,
        [asks(MigrationId([5; 16])), whole.clone()].concat(),
        // Who asks before the commit is answered "never ran", and that holds.
        [asks(ID), whole.clone()].concat(),
        say(1),
        [say(1), whole].concat(),
        spelled,
        message(every_message().swap_remove(13)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_a_good_source_get_to_the_end() {
        for seed in &seeds()[..3] {
            let outcome = receive(seed, Pace::LONG);
            assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
        }
    }
}
