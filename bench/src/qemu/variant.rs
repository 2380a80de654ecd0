//! The ways in which QEMU is asked to migrate.

use std::fmt;

/// Where QEMU keeps the memory of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// In a shared memfd, as this engine does.
    Memfd,
    /// In a shared memfd that the destination populates before it listens: time that is not in that
    /// of the migration.
    MemfdPopulated,
    /// In anonymous memory, QEMU's default.
    Anonymous,
}

/// How a mirror learns of what the guest writes while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyMode {
    /// By marks: what was written is copied later.
    Background,
    /// The guest's write ends when it is on both sides.
    WriteBlocking,
}

impl CopyMode {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::WriteBlocking => "write-blocking",
        }
    }
}

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mirror {}", self.word())
    }
}

/// One way to migrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Multifd channels; `None` is a single stream without multifd.
    pub channels: Option<u8>,
    /// Where the guest's memory is.
    pub memory: Memory,
    /// Another downtime limit than that of all contenders.
    pub downtime_limit_ms: Option<u64>,
    /// How disks are copied that travel.
    pub copy_mode: CopyMode,
}

impl Variant {
    /// The variants that every scenario measures.
    pub const STANDARD: [Self; 4] = [
        Self::of(None),
        Self::of(Some(1)),
        Self::of(Some(2)),
        Self::of(Some(4)),
    ];

    /// What may make QEMU better than its standard variants on some machine.
    pub const FURTHER: [Self; 3] = [
        Self {
            memory: Memory::Anonymous,
            ..Self::of(Some(4))
        },
        Self {
            memory: Memory::MemfdPopulated,
            ..Self::of(Some(4))
        },
        // It stops the guest as soon as what remains fits the limit; a small one makes that late.
        Self {
            downtime_limit_ms: Some(30),
            ..Self::of(Some(4))
        },
    ];

    /// How a guest moves with its disks: as libvirt has it by default, with either way to mirror, and
    /// over more connections.
    pub const WITH_DISKS: [Self; 3] = [
        Self::of(None),
        Self {
            copy_mode: CopyMode::WriteBlocking,
            ..Self::of(None)
        },
        Self::of(Some(4)),
    ];

    const fn of(channels: Option<u8>) -> Self {
        Self {
            channels,
            memory: Memory::Memfd,
            downtime_limit_ms: None,
            copy_mode: CopyMode::Background,
        }
    }

    /// Whether part of the work is done before the time is taken.
    pub fn works_beforehand(&self) -> bool {
        self.memory == Memory::MemfdPopulated
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.channels {
            None => f.write_str("plain")?,
            Some(channels) => write!(f, "multifd {channels}")?,
        }
        match self.memory {
            Memory::Memfd => {}
            Memory::MemfdPopulated => f.write_str(", populated before")?,
            Memory::Anonymous => f.write_str(", anonymous memory")?,
        }
        if let Some(limit) = self.downtime_limit_ms {
            write!(f, ", limit {limit} ms")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_variants_have_one_name() {
        let variants = Variant::STANDARD.iter().chain(&Variant::FURTHER);
        let names: Vec<_> = variants.map(ToString::to_string).collect();
        assert_eq!(names[0], "plain");
        assert_eq!(names[3], "multifd 4");
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}
