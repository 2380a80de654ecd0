//! How a list says which system calls are meant, and with what arguments.

use libc::{CLONE_THREAD, CLONE_VM, PROT_EXEC};

/// Calls that belong together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: &'static str,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the documentation, which a test checks")
    )]
    pub(super) why: &'static str,
    pub(super) calls: &'static [Call],
}

/// One call, and with what arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) number: libc::c_long,
    /// It is allowed if all conditions of one of these hold; always, if there are none.
    pub(super) any_of: &'static [&'static [Condition]],
}

/// What an argument, or its low 32 bits, must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: Value,
}

/// What an argument is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// This number.
    Is(u32),
    /// The id of this process.
    OwnProcess,
    /// Null, in all 64 bits.
    Null,
}

pub(super) const fn masked(argument: u8, mask: u32, value: u32) -> Condition {
    Condition {
        argument,
        mask,
        value: Value::Is(value),
    }
}

pub(super) const fn is(argument: u8, value: u32) -> Condition {
    masked(argument, u32::MAX, value)
}

/// A request to KVM by its number, whatever the size of its argument.
pub(super) const fn kvm(number: u8) -> Condition {
    masked(1, 0xffff, 0xae00 | number as u32)
}

pub(super) const fn ioctl(request: u32) -> Condition {
    is(1, request)
}

pub(super) const OWN: Condition = Condition {
    argument: 0,
    mask: u32::MAX,
    value: Value::OwnProcess,
};

/// No address to send to.
pub(super) const CONNECTED: Condition = Condition {
    argument: 4,
    mask: u32::MAX,
    value: Value::Null,
};

/// A descriptor that the guest's RAM is mapped from, or none: never a page that can be executed.
pub(super) const NOT_EXECUTABLE: Condition = masked(2, PROT_EXEC as u32, 0);
pub(super) const A_THREAD: Condition = masked(
    0,
    (CLONE_THREAD | CLONE_VM) as u32,
    (CLONE_THREAD | CLONE_VM) as u32,
);

pub(super) const fn domain(domain: i32) -> Condition {
    is(0, domain as u32)
}

/// Low bits of a socket's type.
pub(super) const fn kind(kind: i32) -> Condition {
    masked(1, 0xf, kind as u32)
}

macro_rules! calls {
    ($($number:ident $(where $conditions:expr)?),* $(,)?) => {
        &[$(Call {
            name: stringify!($number),
            number: libc::$number,
            any_of: calls!(@conditions $($conditions)?),
        }),*]
    };
    (@conditions) => { &[] };
    (@conditions $conditions:expr) => { $conditions };
}

impl Call {
    /// The name that the kernel knows it by.
    pub(super) fn name(&self) -> &'static str {
        self.name.strip_prefix("SYS_").unwrap_or(self.name)
    }
}

pub(super) use calls;
