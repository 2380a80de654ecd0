//! Reading the logs of a VM, while it lives and afterwards.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::files::{SERIAL, SERIAL_OLDER, VMM, VMM_OLDER};
use super::folder::{Folder, Holder};

/// Which log of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// What the guest printed.
    Console,
    /// What its process tells.
    Process,
}

impl Log {
    /// Name of the file in the VM's folder.
    pub fn file(self) -> &'static str {
        match self {
            Self::Console => SERIAL,
            Self::Process => VMM,
        }
    }

    fn older(self) -> &'static str {
        match self {
            Self::Console => SERIAL_OLDER,
            Self::Process => VMM_OLDER,
        }
    }
}

/// Reads a log from its beginning on, as it grows.
///
/// It belongs to the VM that had the name when it was opened, whatever becomes of the name.
#[derive(Debug)]
pub struct LogReader {
    folder: Folder,
    log: Log,
    newer: Option<File>,
    older: Option<File>,
    begun: bool,
    /// Bytes of the newer file that were told.
    told: u64,
}

impl LogReader {
    pub(super) fn new(folder: Folder, log: Log) -> Self {
        Self {
            folder,
            log,
            newer: None,
            older: None,
            begun: false,
            told: 0,
        }
    }

    /// Whether a process still has the VM, and may write more. Ask before [`LogReader::copy`]: what it
    /// wrote is then all there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_live(&self) -> io::Result<bool> {
        Ok(matches!(self.folder.holder()?, Holder::Process(_)))
    }

    /// Copies what was not told yet to `out`.
    ///
    /// # Errors
    /// What reading or writing gives.
    pub fn copy(&mut self, out: &mut dyn Write) -> io::Result<()> {
        // They are there from the beginning of the VM, a moment after its folder; and are kept open:
        // whoever forgets the VM meanwhile does not matter.
        if self.newer.is_none() {
            self.newer = self.folder.open(self.log.file())?;
        }
        if self.older.is_none() {
            self.older = self.folder.open(self.log.older())?;
        }
        if !std::mem::replace(&mut self.begun, true) {
            copy_from(self.older.as_mut(), 0, out)?;
        }
        let Some(newer) = &mut self.newer else {
            return Ok(());
        };
        if newer.metadata()?.len() < self.told {
            // It was begun anew after it had been copied to the older one.
            copy_from(self.older.as_mut(), self.told, out)?;
            self.told = 0;
        }
        self.told += copy_from(Some(newer), self.told, out)?;
        Ok(())
    }
}

/// Copies what lies from `at` on; its bytes. No more than is there now: who writes faster than is read
/// must not keep us from seeing that the file was begun anew.
fn copy_from(file: Option<&mut File>, at: u64, out: &mut dyn Write) -> io::Result<u64> {
    let Some(file) = file else { return Ok(0) };
    let there = file.metadata()?.len().saturating_sub(at);
    file.seek(SeekFrom::Start(at))?;
    io::copy(&mut file.take(there), out)
}
