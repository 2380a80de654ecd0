//! From lists of calls to seccomp filters, and their installation.

// A filter is given to the kernel by its address, and the C library is told what it may do.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::call::{Call, Value};
use super::calls::{HOSTILE, RUN_VCPU};
use super::debug;
use super::kinds::Kind;

type Compiled<T> = Result<T, String>;

/// `clone3` keeps its flags in memory, where a filter cannot see them: the C library is told that it
/// is not there, and uses `clone`.
const CLONE3: Call = Call {
    name: "SYS_clone3",
    number: libc::SYS_clone3,
    any_of: &[],
};
const CLONE: Call = Call {
    name: "SYS_clone",
    number: libc::SYS_clone,
    any_of: &[],
};

/// The filters of one kind of thread, compiled once.
///
/// # Errors
/// What the compiler says; a mistake in the lists.
pub(super) fn of_kind(kind: Kind) -> Result<&'static [BpfProgram], String> {
    static FILTERS: [OnceLock<Compiled<Vec<BpfProgram>>>; Kind::ALL.len()] =
        [const { OnceLock::new() }; Kind::ALL.len()];
    let filters = FILTERS[kind as usize].get_or_init(|| {
        let groups = kind.groups();
        let runs_vcpus = groups.iter().any(|group| group.name == RUN_VCPU.name);
        let listed = groups.into_iter().flat_map(|group| group.calls);
        let listed = listed.filter(|call| !debug::refused(kind, call.name()));
        let of_listed = |listed: &mut dyn Iterator<Item = &'static Call>| {
            let filter = compile(listed, SeccompAction::Trap, SeccompAction::Allow)?;
            Ok::<_, String>(if runs_vcpus { quick(filter) } else { filter })
        };
        if kind.may_start_threads() {
            return Ok(vec![of_listed(&mut { listed })?]);
        }
        // The C library starts threads with all signals blocked, and a signal of a filter that is
        // blocked ends the process: this refusal is an error and nothing else.
        let refusal = SeccompAction::Errno(libc::EPERM as u32);
        Ok(vec![
            // First, as nothing can be installed after the other.
            quick(compile(
                [&CLONE, &CLONE3].into_iter(),
                SeccompAction::Allow,
                refusal,
            )?),
            of_listed(&mut listed.chain([&CLONE, &CLONE3]))?,
        ])
    });
    filters.as_deref().map_err(Clone::clone)
}

/// The filters that every thread has: what ends the process, and what does not exist here.
pub(super) fn of_all() -> Result<[BpfProgram; 2], String> {
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
    let ends = SeccompAction::KillProcess;
    Ok([
        quick(compile(HOSTILE.iter(), SeccompAction::Allow, ends)?),
        quick(compile(
            [&CLONE3].into_iter(),
            SeccompAction::Allow,
            not_there,
        )?),
    ])
}

/// Puts the request that a vCPU makes after every exit before all else of a filter that allows it.
///
/// The kernel remembers which calls a filter allows whatever their arguments are, and does not run it
/// for those (Linux 5.11). `KVM_RUN` is told by an argument, so its filters run each time.
fn quick(filter: BpfProgram) -> BpfProgram {
    // Classic BPF (linux/bpf_common.h) over `struct seccomp_data`: number at 0, architecture at 4,
    // arguments of 8 bytes from 16.
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X86_64: u32 = 0xc000_003e;
    const KVM_RUN: u32 = 0xae80;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut quick = vec![
        op(LOAD, 0, 0, 4),
        op(EQUAL, 0, 5, X86_64),
        op(LOAD, 0, 0, 0),
        op(EQUAL, 0, 3, libc::SYS_ioctl as u32),
        op(LOAD, 0, 0, 24),
        op(EQUAL, 0, 1, KVM_RUN),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    quick.extend(filter);
    quick
}

fn compile<'a>(
    calls: impl Iterator<Item = &'a Call>,
    other: SeccompAction,
    listed: SeccompAction,
) -> Compiled<BpfProgram> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in calls {
        let rule = rules.entry(call.number).or_insert_with(|| Some(Vec::new()));
        if call.any_of.is_empty() {
            // Allowed whatever its arguments are, also where another group is more particular.
            *rule = None;
        }
        let Some(chain) = rule else { continue };
        for conditions in call.any_of {
            let conditions: Result<Vec<_>, _> = conditions
                .iter()
                .map(|condition| {
                    let value = match condition.value {
                        Value::Is(value) => value,
                        Value::OwnProcess => std::process::id(),
                        Value::Null => {
                            return SeccompCondition::new(
                                condition.argument,
                                SeccompCmpArgLen::Qword,
                                SeccompCmpOp::Eq,
                                0,
                            );
                        }
                    };
                    SeccompCondition::new(
                        condition.argument,
                        SeccompCmpArgLen::Dword,
                        SeccompCmpOp::MaskedEq(condition.mask.into()),
                        value.into(),
                    )
                })
                .collect();
            let rule = conditions
                .and_then(SeccompRule::new)
                .map_err(|e| e.to_string())?;
            if !chain.contains(&rule) {
                chain.push(rule);
            }
        }
    }
    let rules = rules
        .into_iter()
        .map(|(number, rules)| (number, rules.unwrap_or_default()))
        .collect();
    SeccompFilter::new(rules, other, listed, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

/// Confines the calling thread, and those that it starts from now on, for ever.
///
/// # Errors
/// When the kernel has no seccomp filters, or no memory.
pub(super) fn install_all(programs: &[BpfProgram]) -> io::Result<()> {
    programs.iter().try_for_each(install)
}

fn install(program: &BpfProgram) -> io::Result<()> {
    let length = u16::try_from(program.len())
        .map_err(|_| io::Error::other("the filter is longer than the kernel takes"))?;
    let filter = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // Before Linux 5.16 a filter also turns a mitigation of speculative stores on, which slows guests
    // down and is theirs to choose.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the program lives for the duration of the call, which copies it; its entries have the
    // layout of the kernel's `struct sock_filter`.
    let installed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    if installed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has the C library's allocator look now at what it would look at later, in any thread and at any
/// time: how many CPUs there are, which bounds its arenas, and, when a thread gives memory back for the
/// first time, whether the kernel overcommits.
pub(super) fn settle_allocator() {
    /// Below the least size that gets a mapping of its own.
    const PIECE: usize = 120 << 10;
    /// Together more than an arena keeps.
    const PIECES: usize = 16;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let arenas = i32::try_from(cores.saturating_mul(8)).unwrap_or(i32::MAX);
    // SAFETY: the call takes numbers only. Where it fails, the look at the file is refused, harmlessly.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    // The first thread has an arena that does not shrink as those of others do.
    let settling = std::thread::Builder::new().spawn(|| {
        let pieces = [(); PIECES].map(|()| Vec::<u8>::with_capacity(PIECE));
        std::hint::black_box(&pieces);
    });
    if let Ok(settling) = settling {
        let _ = settling.join();
    }
}

/// Gives up, for this thread and those it starts, that a program could have more rights than its
/// caller; the kernel wants it before an ordinary user may install a filter.
///
/// # Errors
/// What the kernel says.
pub(super) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
