//! System calls in groups, each with the reason why a thread needs it.
//!
//! To let a thread do something new, add the call to the group whose reason covers it, or make a group
//! and give it to the kinds of threads in `kinds.rs`. The table in `docs/threat-model.md` is checked
//! against both.

use libc::CLONE_THREAD;

use super::call::{
    A_THREAD, CONNECTED, Call, Group, NOT_EXECUTABLE, OWN, calls, domain, ioctl, is, kind, kvm,
    masked,
};

/// Gives what the kernel gave the program when it started it (Linux 6.4; linux/prctl.h).
const PR_GET_AUXV: u32 = 0x4155_5856;

pub(super) const THREAD: Group = Group {
    name: "thread",
    why: "memory that cannot be executed, locks, clocks, signals, the thread's own end, what a panic looks up",
    calls: calls![
        SYS_mmap where &[&[NOT_EXECUTABLE]],
        SYS_mprotect where &[&[NOT_EXECUTABLE]],
        SYS_munmap,
        SYS_mremap,
        SYS_madvise,
        SYS_brk,
        SYS_futex,
        SYS_set_robust_list,
        SYS_rseq,
        SYS_membarrier,
        SYS_clock_gettime,
        SYS_clock_getres,
        SYS_clock_nanosleep,
        SYS_nanosleep,
        SYS_gettimeofday,
        SYS_sched_yield,
        SYS_sched_getaffinity,
        SYS_getcpu,
        SYS_gettid,
        SYS_getpid,
        SYS_getrandom,
        SYS_sendto where &[&[CONNECTED]], // in a handler of a signal, which any thread may get
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_restart_syscall,
        SYS_tgkill where &[&[OWN]],
        SYS_prctl where &[
            &[is(0, libc::PR_SET_NAME as u32)],
            &[is(0, libc::PR_GET_NAME as u32)],
            &[is(0, PR_GET_AUXV)], // where the kernel's own code for clocks lies
        ],
        SYS_exit,
        SYS_exit_group,
        SYS_getcwd,
        SYS_readlink,
        SYS_fstat,
        SYS_newfstatat,
        SYS_statx,
    ],
};

pub(super) const EVENTS: Group = Group {
    name: "events",
    why: "read and write what is open: event descriptors, logs and their rotation",
    calls: calls![
        SYS_read,
        SYS_write,
        SYS_readv,
        SYS_writev,
        SYS_poll,
        SYS_ppoll,
        SYS_close,
        SYS_lseek,
        SYS_ftruncate,
        SYS_pread64,
        SYS_pwrite64,
        SYS_fcntl where &[
            &[is(1, libc::F_GETFD as u32)],
            &[is(1, libc::F_SETFD as u32)],
            &[is(1, libc::F_GETFL as u32)],
            &[is(1, libc::F_SETFL as u32)],
            &[is(1, libc::F_DUPFD_CLOEXEC as u32)],
        ],
    ],
};

pub(super) const SPAWN: Group = Group {
    name: "spawn",
    why: "start threads, never processes, and confine them",
    calls: calls![
        SYS_clone where &[&[A_THREAD]],
        SYS_clone3,
        SYS_seccomp,
        SYS_prctl where &[&[is(0, libc::PR_SET_NO_NEW_PRIVS as u32)]],
        SYS_rt_sigaction,
    ],
};

pub(super) const PACE: Group = Group {
    name: "pace",
    why: "step back behind the vCPUs, keep to a share of the processors",
    calls: calls![SYS_getpriority, SYS_setpriority, SYS_sched_setaffinity],
};

pub(super) const TIME_SLICE: Group = Group {
    name: "time-slice",
    why: "a timer of its own, after which it yields its processor",
    calls: calls![SYS_timer_create, SYS_timer_settime, SYS_timer_delete],
};

pub(super) const FILES: Group = Group {
    name: "files",
    why: "records of migrations and the VM's folder; landlock says where",
    calls: calls![
        SYS_open,
        SYS_openat,
        SYS_mkdir,
        SYS_mkdirat,
        SYS_unlink,
        SYS_unlinkat,
        SYS_rmdir,
        SYS_rename,
        SYS_renameat,
        SYS_renameat2,
        SYS_link,
        SYS_linkat,
        SYS_chmod,
        SYS_fchmod,
        SYS_fchmodat,
        SYS_getdents64,
        SYS_flock,
        SYS_fsync,
        SYS_fdatasync,
        SYS_pread64,
        SYS_pwrite64,
        SYS_stat,
        SYS_lstat,
        SYS_access,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_readlinkat,
    ],
};

pub(super) const DISK: Group = Group {
    name: "disk",
    why: "requests of the guest to an open image, and of a migration to one that travels",
    calls: calls![
        SYS_preadv,
        SYS_pwritev,
        SYS_preadv2,
        SYS_pwritev2,
        SYS_pread64,
        SYS_pwrite64,
        SYS_fdatasync,
        SYS_fsync,
        SYS_fallocate,
    ],
};

pub(super) const RING: Group = Group {
    name: "ring",
    why: "hand requests of the guest to the kernel, by a ring that takes no others",
    calls: calls![SYS_io_uring_enter],
};

pub(super) const MAKE_RING: Group = Group {
    name: "make-ring",
    why: "make the ring of a disk and limit it, before the guest begins",
    calls: calls![
        SYS_io_uring_setup,
        SYS_io_uring_register where &[
            &[is(1, 2)],  // REGISTER_FILES
            &[is(1, 8)],  // REGISTER_PROBE
            &[is(1, 11)], // REGISTER_RESTRICTIONS
            &[is(1, 12)], // REGISTER_ENABLE_RINGS
        ],
    ],
};

pub(super) const CLAIMS: Group = Group {
    name: "claims",
    why: "hand the lock of an open image over, flush it, mark it as leaving",
    calls: calls![
        SYS_fgetxattr,
        SYS_fsetxattr,
        SYS_fremovexattr,
        SYS_fcntl where &[&[is(1, libc::F_OFD_SETLK as u32)], &[is(1, libc::F_OFD_GETLK as u32)]],
        SYS_fdatasync,
        SYS_fsync,
    ],
};

pub(super) const CANCEL: Group = Group {
    name: "cancel",
    why: "end the connections of a migration whose guest has ended",
    calls: calls![SYS_shutdown],
};

pub(super) const TRANSFER: Group = Group {
    name: "transfer",
    why: "send and receive on a connected socket",
    calls: calls![
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_sendto,
        SYS_recvfrom,
        SYS_shutdown,
        SYS_setsockopt,
        SYS_getsockopt,
        SYS_getsockname,
        SYS_getpeername,
        SYS_ioctl where &[&[ioctl(libc::FIONBIO as u32)]],
    ],
};

pub(super) const PAGES: Group = Group {
    name: "pages",
    why: "hand pages of the guest's RAM to a socket by way of a pipe",
    calls: calls![
        SYS_vmsplice,
        SYS_splice,
        SYS_pipe2,
        SYS_fcntl where &[&[is(1, libc::F_SETPIPE_SZ as u32)], &[is(1, libc::F_GETPIPE_SZ as u32)]],
    ],
};

pub(super) const CONNECT: Group = Group {
    name: "connect",
    why: "reach the destination of a migration, at any address",
    calls: calls![
        SYS_socket where &[
            &[domain(libc::AF_UNIX), kind(libc::SOCK_STREAM)],
            &[domain(libc::AF_INET), kind(libc::SOCK_STREAM)],
            &[domain(libc::AF_INET6), kind(libc::SOCK_STREAM)],
        ],
        SYS_connect,
    ],
};

pub(super) const ACCEPT: Group = Group {
    name: "accept",
    why: "take connections in",
    calls: calls![
        SYS_accept4,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_ioctl where &[&[ioctl(libc::FIONBIO as u32)]],
    ],
};

pub(super) const API: Group = Group {
    name: "api",
    why: "the event loop of the control socket, signals",
    calls: calls![
        SYS_epoll_create1,
        SYS_epoll_ctl,
        SYS_epoll_wait,
        SYS_epoll_pwait,
        SYS_epoll_pwait2,
        SYS_eventfd2,
        SYS_socketpair,
        SYS_timerfd_create,
        SYS_timerfd_settime,
    ],
};

pub(super) const REOPEN: Group = Group {
    name: "reopen",
    why: "standard error follows a log that was moved away",
    calls: calls![SYS_dup2, SYS_dup3],
};

pub(super) const TERMINAL: Group = Group {
    name: "terminal",
    why: "the console in the foreground: raw mode and back, its keys",
    calls: calls![
        SYS_ioctl where &[
            &[ioctl(libc::TCGETS as u32)],
            &[ioctl(libc::TCSETS as u32)],
            &[ioctl(libc::TCGETS2 as u32)],
            &[ioctl(libc::TCSETS2 as u32)],
            &[ioctl(libc::TIOCGPGRP as u32)],
            &[ioctl(libc::TIOCGWINSZ as u32)],
        ],
        SYS_getpgrp,
        SYS_getpgid,
        SYS_kill where &[&[OWN]],
    ],
};

pub(super) const RUN_VCPU: Group = Group {
    name: "run-vcpu",
    why: "KVM_RUN, and the registers that explain why a guest failed",
    calls: calls![SYS_ioctl where &[
        &[kvm(0x80)], // RUN
        &[kvm(0x81)], // GET_REGS
        &[kvm(0x83)], // GET_SREGS
        &[kvm(0x85)], // TRANSLATE
        &[kvm(0x9f)], // GET_VCPU_EVENTS
    ]],
};

pub(super) const DIRTY_LOG: Group = Group {
    name: "dirty-log",
    why: "which pages the guest wrote",
    calls: calls![SYS_ioctl where &[
        &[kvm(0x42)], // GET_DIRTY_LOG
        &[kvm(0xc0)], // CLEAR_DIRTY_LOG
    ]],
};

pub(super) const TAP: Group = Group {
    name: "tap",
    why: "what an open tap offloads, and how many of its queues take part",
    calls: calls![SYS_ioctl where &[
        &[ioctl(libc::TUNSETOFFLOAD as u32)],
        &[ioctl(libc::TUNSETQUEUE as u32)],
    ]],
};

pub(super) const OPEN_TAP: Group = Group {
    name: "open-tap",
    why: "open a tap of a name, ask what it carries, claim it by a socket's name; only before the VM is up",
    calls: calls![
        SYS_socket where &[
            &[domain(libc::AF_INET), kind(libc::SOCK_DGRAM)],
            &[domain(libc::AF_UNIX), kind(libc::SOCK_DGRAM)],
        ],
        SYS_bind,
        SYS_ioctl where &[
            &[ioctl(libc::TUNSETIFF as u32)],
            &[ioctl(libc::TUNSETVNETHDRSZ as u32)],
            &[ioctl(libc::SIOCGIFINDEX as u32)],
            &[ioctl(libc::SIOCGIFMTU as u32)],
            &[ioctl(libc::SIOCGIFFLAGS as u32)],
        ],
    ],
};

pub(super) const GUEST_RAM: Group = Group {
    name: "guest-ram",
    why: "drop pages of the guest's RAM that hold nothing",
    calls: calls![SYS_fallocate],
};

pub(super) const MACHINE_STATE: Group = Group {
    name: "machine-state",
    why: "save and load vCPUs, interrupt controllers and clocks; the dirty log on and off",
    calls: calls![SYS_ioctl where &[
        &[kvm(0x46)], // SET_USER_MEMORY_REGION
        &[kvm(0x62)], // GET_IRQCHIP
        &[kvm(0x63)], // SET_IRQCHIP
        &[kvm(0x7b)], // SET_CLOCK
        &[kvm(0x7c)], // GET_CLOCK
        &[kvm(0x80)], // RUN, to complete an access
        &[kvm(0x81)], // GET_REGS
        &[kvm(0x82)], // SET_REGS
        &[kvm(0x83)], // GET_SREGS
        &[kvm(0x84)], // SET_SREGS
        &[kvm(0x85)], // TRANSLATE
        &[kvm(0x88)], // GET_MSRS
        &[kvm(0x89)], // SET_MSRS
        &[kvm(0x8c)], // GET_FPU
        &[kvm(0x8d)], // SET_FPU
        &[kvm(0x8e)], // GET_LAPIC
        &[kvm(0x8f)], // SET_LAPIC
        &[kvm(0x98)], // GET_MP_STATE
        &[kvm(0x99)], // SET_MP_STATE
        &[kvm(0x9f)], // GET_VCPU_EVENTS, GET_PIT2
        &[kvm(0xa0)], // SET_VCPU_EVENTS, SET_PIT2
        &[kvm(0xa1)], // GET_DEBUGREGS
        &[kvm(0xa2)], // SET_DEBUGREGS, SET_TSC_KHZ
        &[kvm(0xa3)], // GET_TSC_KHZ, ENABLE_CAP
        &[kvm(0xa4)], // GET_XSAVE
        &[kvm(0xa5)], // SET_XSAVE
        &[kvm(0xa6)], // GET_XCRS
        &[kvm(0xa7)], // SET_XCRS
        &[kvm(0xad)], // KVMCLOCK_CTRL
        &[kvm(0xcc)], // GET_SREGS2
        &[kvm(0xcd)], // SET_SREGS2
        &[kvm(0xcf)], // GET_XSAVE2
        &[kvm(0xe1)], // SET_DEVICE_ATTR
        &[kvm(0xe2)], // GET_DEVICE_ATTR
        &[kvm(0xe3)], // HAS_DEVICE_ATTR
    ]],
};

pub(super) const BUILD: Group = Group {
    name: "build",
    why: "make a machine: a VM, its RAM, vCPUs, interrupts and notifications",
    calls: calls![
        SYS_ioctl where &[
            &[kvm(0x00)], // GET_API_VERSION
            &[kvm(0x01)], // CREATE_VM
            &[kvm(0x02)], // GET_MSR_INDEX_LIST
            &[kvm(0x03)], // CHECK_EXTENSION
            &[kvm(0x04)], // GET_VCPU_MMAP_SIZE
            &[kvm(0x05)], // GET_SUPPORTED_CPUID
            &[kvm(0x0a)], // GET_MSR_FEATURE_INDEX_LIST
            &[kvm(0x41)], // CREATE_VCPU
            &[kvm(0x47)], // SET_TSS_ADDR
            &[kvm(0x48)], // SET_IDENTITY_MAP_ADDR
            &[kvm(0x60)], // CREATE_IRQCHIP
            &[kvm(0x76)], // IRQFD
            &[kvm(0x77)], // CREATE_PIT2
            &[kvm(0x79)], // IOEVENTFD
            &[kvm(0x90)], // SET_CPUID2
            &[kvm(0x91)], // GET_CPUID2
        ],
        SYS_open,
        SYS_openat,
        SYS_memfd_create,
        SYS_eventfd2,
        SYS_sysinfo,
        SYS_pread64,
        SYS_preadv,
    ],
};

pub(super) const START: Group = Group {
    name: "start",
    why: "listen, open and lock images, limit files, let go of the caller's terminal; only before the VM is up",
    calls: calls![
        SYS_socket where &[
            &[domain(libc::AF_UNIX), kind(libc::SOCK_STREAM)],
            &[domain(libc::AF_UNIX), kind(libc::SOCK_SEQPACKET)], // where files are passed
            &[domain(libc::AF_INET), kind(libc::SOCK_STREAM)],
            &[domain(libc::AF_INET6), kind(libc::SOCK_STREAM)],
        ],
        SYS_bind,
        SYS_listen,
        SYS_dup2,
        SYS_dup3,
        SYS_geteuid,
        SYS_landlock_create_ruleset,
        SYS_landlock_add_rule,
        SYS_landlock_restrict_self,
        SYS_ioctl where &[
            &[ioctl(0x1272 | 0x8008_0000)], // BLKGETSIZE64
            &[ioctl(0x1268)],               // BLKSSZGET
            &[ioctl(0x4c05)],               // LOOP_GET_STATUS64
        ],
        SYS_fstatfs,
        SYS_fadvise64,
    ],
};

/// Calls that nothing in this process ever makes, before or after the guest is there: whoever makes
/// one has taken the process over.
pub(super) const HOSTILE: &[Call] = calls![
    SYS_execve,
    SYS_execveat,
    SYS_fork,
    SYS_vfork,
    SYS_clone where &[&[masked(0, CLONE_THREAD as u32, 0)]],
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kcmp,
    SYS_pidfd_getfd,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_unshare,
    SYS_setns,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
    SYS_acct,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_setuid,
    SYS_setgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setgroups,
    SYS_capset,
    SYS_open_by_handle_at,
    SYS_mknod,
    SYS_mknodat,
];
