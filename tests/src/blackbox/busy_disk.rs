//! A guest that writes its disk faster than the link carries, and leaves with it.

use std::path::PathBuf;

use super::moving_disk::Load;
use super::{Guest, Migration, Pair, Vms, images};

/// Writes without end all over the disk, of which a part is flushed.
const BUSY: &str = "depth=16,start=fill,length=64M,read=10,verify=5,discard=5,zeroes=5,size=16K/64K,flush=64,interval_ms=100";
/// Less than it writes.
const LIMITS: &[&str] = &["--bandwidth", "16MiB/s", "--downtime-limit", "1s"];

/// It, and the two hosts.
pub struct BusyDisk {
    /// The hosts.
    pub pair: Pair,
    /// What it writes.
    pub load: Load,
}

impl BusyDisk {
    /// It runs at the source.
    #[track_caller]
    #[must_use]
    pub fn begin() -> Self {
        let pair = Pair::new();
        let image = images::sparse(pair.source.path(), "data.raw", 64 << 20);
        let guest = Guest::dirtying().memory("192MiB").disk_load(&image, BUSY);
        let load = Load::on(pair.source.run("guest", &guest));
        Self { pair, load }
    }

    /// Begins to move the guest, over a link that carries less than it writes.
    #[track_caller]
    pub fn leaves(&self, more: &[&str]) -> Migration {
        self.leaves_by(&[LIMITS, more].concat())
    }

    /// Begins to move the guest.
    #[track_caller]
    pub fn leaves_by(&self, how: &[&str]) -> Migration {
        let disk = format!("data={},create", self.there().display());
        let address =
            self.pair
                .destination
                .receive_with("there", "127.0.0.1:0", &["--disk", &disk]);
        Migration::start(&self.pair.source, "guest", &address, how)
    }

    /// Where its disk comes.
    #[must_use]
    pub fn there(&self) -> PathBuf {
        self.pair.destination.path().join("there.raw")
    }

    /// The guest has moved; its disk is judged there.
    ///
    /// # Panics
    /// When a write of which it was told is not there.
    #[track_caller]
    pub fn has_moved(mut self) {
        let there = self.there();
        let host = &self.pair.destination;
        self.load.console.moves_to(host, "there");
        self.load.goes_on(100);
        host.press("there", b'q');
        host.ended("there");
        self.load.comes_to_its_end();
        self.load.has_lost_nothing_at(&there);
        self.pair.is_clean();
    }
}
