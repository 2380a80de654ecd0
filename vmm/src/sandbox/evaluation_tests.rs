//! What the filters answer, and in how many steps, as the kernel works it out.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::BpfProgram;

use super::calls::HOSTILE;
use super::{Kind, filter};

const X86_64: u32 = 0xc000_003e;
/// Numbers of system calls that there may be, those of another calling convention (x32) among them.
const NUMBERS: std::ops::Range<u32> = 0..600;
const KVM_RUN: u64 = 0xae80;
const KVM_SET_MSRS: u64 = 0x4008_ae89;

/// What a filter made of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    action: u32,
    steps: usize,
    /// Whether an argument was looked at. Where none was, the kernel remembers that the call is allowed
    /// and does not run the filter again.
    looked: bool,
}

/// Runs a filter of classic BPF (linux/bpf_common.h) as far as filters of system calls use it.
fn run(program: &BpfProgram, number: u32, arguments: [u64; 6]) -> Answer {
    let (mut at, mut steps, mut accumulator, mut looked) = (0, 0, 0, false);
    loop {
        let op = &program[at];
        at += 1;
        steps += 1;
        let jump = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
        match op.code {
            0x20 => {
                accumulator = match op.k {
                    0 => number,
                    4 => X86_64,
                    at => {
                        looked = true;
                        let offset = at - 16;
                        let word = arguments[offset as usize / 8];
                        (word >> (offset % 8 * 8)) as u32
                    }
                }
            }
            0x54 => accumulator &= op.k,
            0x05 => at += op.k as usize,
            0x15 => at += jump(accumulator == op.k),
            0x25 => at += jump(accumulator > op.k),
            0x35 => at += jump(accumulator >= op.k),
            0x06 => {
                return Answer {
                    action: op.k,
                    steps,
                    looked,
                };
            }
            other => panic!("code {other:#x}"),
        }
    }
}

/// What each filter of a thread makes of a call.
fn answers(kind: Kind, number: u32, arguments: [u64; 6]) -> Vec<Answer> {
    let mut programs: Vec<&BpfProgram> = Vec::new();
    let of_all = filter::of_all().unwrap();
    programs.extend(&of_all);
    programs.extend(filter::of_kind(Kind::Process).unwrap());
    if kind != Kind::Process {
        programs.extend(filter::of_kind(kind).unwrap());
    }
    programs
        .iter()
        .map(|program| run(program, number, arguments))
        .collect()
}

/// What all together make of it: the kernel runs each and takes the strictest answer.
fn answer(kind: Kind, number: u32, arguments: [u64; 6]) -> Answer {
    let answers = answers(kind, number, arguments);
    answers
        .into_iter()
        .reduce(|a, b| Answer {
            // The order of strictness is that of the values, read as signed numbers.
            action: if (a.action as i32) <= (b.action as i32) {
                a.action
            } else {
                b.action
            },
            steps: a.steps + b.steps,
            looked: a.looked || b.looked,
        })
        .unwrap()
}

/// Whether a call may be made, with whatever arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum May {
    Never,
    WithSomeArguments,
    Always,
}

fn may(kind: Kind, number: u32) -> May {
    let of_one = |answer: &Answer| match answer {
        Answer { looked: true, .. } => May::WithSomeArguments,
        answer if answer.action == libc::SECCOMP_RET_ALLOW => May::Always,
        _ => May::Never,
    };
    let answers = answers(kind, number, [0; 6]);
    answers.iter().map(of_one).min().unwrap()
}

#[test]
fn running_a_vcpu_costs_few_steps() {
    let run = answer(Kind::Vcpu, libc::SYS_ioctl as u32, [9, KVM_RUN, 0, 0, 0, 0]);
    assert_eq!(run.action, libc::SECCOMP_RET_ALLOW);
    assert!(run.steps <= 35, "{run:?}");
    // Not for who is no vCPU, and not for another request.
    let others = [(Kind::Disk, KVM_RUN), (Kind::Vcpu, KVM_SET_MSRS)];
    for (kind, request) in others {
        let other = answer(kind, libc::SYS_ioctl as u32, [9, request, 0, 0, 0, 0]);
        assert_eq!(other.action, libc::SECCOMP_RET_TRAP, "{kind:?}");
    }
}

/// What is made again and again while a guest runs and moves is allowed without a look at its
/// arguments, so that the kernel does not run the filters.
#[test]
fn hot_calls_are_allowed_by_their_number_alone() {
    let hot: [(Kind, &[libc::c_long]); 7] = [
        (
            Kind::Vcpu,
            &[libc::SYS_read, libc::SYS_write, libc::SYS_futex],
        ),
        (
            Kind::Disk,
            &[
                libc::SYS_preadv,
                libc::SYS_pwritev,
                libc::SYS_fdatasync,
                libc::SYS_read,
                libc::SYS_write,
                libc::SYS_futex,
            ],
        ),
        (
            Kind::Ring,
            &[libc::SYS_io_uring_enter, libc::SYS_write, libc::SYS_futex],
        ),
        (
            Kind::Net,
            &[
                libc::SYS_readv,
                libc::SYS_writev,
                libc::SYS_poll,
                libc::SYS_read,
                libc::SYS_write,
            ],
        ),
        (
            Kind::Stream,
            &[
                libc::SYS_sendmsg,
                libc::SYS_recvmsg,
                libc::SYS_vmsplice,
                libc::SYS_splice,
                libc::SYS_pipe2,
                libc::SYS_madvise,
                libc::SYS_fallocate,
                libc::SYS_lseek,
                libc::SYS_futex,
            ],
        ),
        (
            Kind::Link,
            &[libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_recvfrom],
        ),
        (
            Kind::Control,
            &[libc::SYS_epoll_wait, libc::SYS_recvfrom, libc::SYS_sendto],
        ),
    ];
    for (kind, calls) in hot {
        for &number in calls {
            let answer = answer(kind, number as u32, [0; 6]);
            assert_eq!(
                (answer.action, answer.looked),
                (libc::SECCOMP_RET_ALLOW, false),
                "{kind:?} {number}"
            );
        }
    }
}

/// Rows of the table that begins with a line, without marks.
fn table<'a>(page: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let (_, rows) = page.split_once(head).unwrap();
    let rows = rows.lines().skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(", ").filter(|word| !word.is_empty())
}

/// Nothing here asks the lists of the code what they say: the page on one side, the programs that the
/// kernel gets on the other.
#[test]
fn the_kernel_is_given_what_the_page_says_and_nothing_else() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/threat-model.md");
    let page = std::fs::read_to_string(path).unwrap();
    // The names of the kernel's numbers are all that is taken from the code.
    let listed = Kind::ALL.iter().flat_map(|kind| kind.groups());
    let numbers: BTreeMap<&str, u32> = listed
        .flat_map(|group| group.calls)
        .chain(HOSTILE)
        .map(|call| (call.name(), call.number as u32))
        .collect();
    let number = |name: &str| {
        let name = name.trim_end_matches('*');
        *numbers
            .get(name)
            .unwrap_or_else(|| panic!("no call {name}"))
    };
    let marked = |name: &str| match name.ends_with('*') {
        true => (number(name), May::WithSomeArguments),
        false => (number(name), May::Always),
    };
    let groups: BTreeMap<&str, Vec<(u32, May)>> = table(&page, "| group | system calls | for |")
        .iter()
        .map(|row| (row[0], list(row[1]).map(marked).collect()))
        .collect();
    let threads: BTreeMap<&str, (Vec<&str>, Vec<&str>)> =
        table(&page, "| thread | allowed | starts |")
            .iter()
            .map(|row| (row[0], (list(row[1]).collect(), list(row[2]).collect())))
            .collect();
    let ends: BTreeMap<u32, bool> = table(&page, "| ends the process |")
        .iter()
        .flat_map(|row| list(row[0]))
        .map(|name| (number(name), name.ends_with('*')))
        .collect();
    for kind in Kind::ALL {
        let mut wanted: BTreeMap<u32, May> = groups["thread"].iter().copied().collect();
        let mut todo = vec![kind.name()];
        let mut done = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if done.insert(name) {
                let (allowed, starts) = &threads[name];
                for &(call, may) in allowed.iter().flat_map(|group| &groups[group]) {
                    let known = wanted.entry(call).or_insert(may);
                    *known = may.max(*known);
                }
                todo.extend(starts);
            }
        }
        for call in NUMBERS {
            let a = answer(kind, call, [0; 6]);
            if ends.get(&call) == Some(&false) {
                assert_eq!(a.action, libc::SECCOMP_RET_KILL_PROCESS, "{kind:?} {call}");
            } else if call == libc::SYS_clone3 as u32 {
                let errno = a.action & libc::SECCOMP_RET_ACTION_FULL;
                assert_eq!(errno, libc::SECCOMP_RET_ERRNO, "{kind:?}");
            } else if !ends.contains_key(&call) {
                let wanted = wanted.get(&call).copied().unwrap_or(May::Never);
                assert_eq!(may(kind, call), wanted, "{kind:?} {call}: {a:?}");
            }
        }
    }
    assert_eq!(threads.len(), Kind::ALL.len());
}
