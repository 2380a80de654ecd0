//! Guests that check themselves: the embedded probe with the work that a test gives it.

use std::path::Path;

/// A guest to be started.
#[derive(Debug, Clone)]
pub struct Guest {
    cpus: u32,
    memory: &'static str,
    cmdline: String,
    more: Vec<String>,
}

impl Guest {
    /// Holds a ledger that it only verifies, and halts in between.
    pub fn idle() -> Self {
        Self {
            cpus: 1,
            memory: "64MiB",
            cmdline: "ledger=8M fill=random fill_size=4M tick_ms=100 idle=halt".into(),
            more: Vec::new(),
        }
    }

    /// Small enough that many fit beside each other, and yet with all that can go wrong.
    pub fn small() -> Self {
        Self {
            memory: "32MiB",
            cmdline: "ledger=2M fill=random fill_size=1M tick_ms=50 dirty_rate=500 dirty_set=512K idle=halt"
                .into(),
            ..Self::idle()
        }
    }

    /// Changes a part of its ledger all the time while it verifies the whole.
    pub fn dirtying() -> Self {
        Self {
            cmdline: "ledger=8M fill=random fill_size=4M tick_ms=100 dirty_rate=2000 dirty_set=2M idle=halt"
                .into(),
            ..Self::idle()
        }
    }

    /// As [`Guest::dirtying`], with enough memory that a limited migration takes as long as a test
    /// needs.
    pub fn slow_to_move() -> Self {
        let cmdline =
            "ledger=48M fill=random fill_size=4M tick_ms=100 dirty_rate=500 dirty_set=2M idle=halt"
                .into();
        Self {
            memory: "128MiB",
            cmdline,
            ..Self::idle()
        }
    }

    /// With so many vCPUs.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// With this CPU model.
    #[must_use]
    pub fn cpu(mut self, model: &str) -> Self {
        self.more.push("--cpu".into());
        self.more.push(model.into());
        self
    }

    /// With so much RAM.
    #[must_use]
    pub fn memory(self, memory: &'static str) -> Self {
        Self { memory, ..self }
    }

    /// Loaded from this image of the probe, with an initrd beside it.
    #[must_use]
    pub fn initrd(mut self, kernel: &Path, initrd: &Path) -> Self {
        for (option, path) in [("--kernel", kernel), ("--initrd", initrd)] {
            self.more.push(option.into());
            self.more.push(path.display().to_string());
        }
        self
    }

    /// With more words on its command line.
    #[must_use]
    pub fn and(self, words: &str) -> Self {
        Self {
            cmdline: format!("{} {words}", self.cmdline),
            ..self
        }
    }

    /// With a disk on which it writes and verifies blocks.
    #[must_use]
    pub fn disk(self, path: &Path) -> Self {
        self.disk_with(path, "id=data", "block=verify,size=4M block_rate=200")
    }

    /// With a disk of these options, with which it does as these words of the kernel command line say.
    #[must_use]
    pub fn disk_with(mut self, path: &Path, options: &str, words: &str) -> Self {
        self.more.push("--disk".into());
        self.more.push(format!("{},{options}", path.display()));
        self.and(words)
    }

    /// With a disk under a load with these options (docs/probe.md), as `depth=32,start=fill`.
    #[must_use]
    pub fn disk_load(mut self, path: &Path, options: &str) -> Self {
        self.more.push("--disk".into());
        self.more.push(format!("{},id=data", path.display()));
        self.and(&format!("disk=data,{options}"))
    }

    /// With a network interface on a tap, where it echoes UDP and TCP at `address`, as `10.0.0.2/24`.
    #[must_use]
    pub fn net(mut self, tap: &str, mac: &str, address: &str) -> Self {
        self.more.push("--net".into());
        self.more.push(format!("tap={tap},mac={mac}"));
        self.and(&format!("net={address}"))
    }

    /// Arguments that start it detached.
    pub fn run_args(&self, vm: &str) -> Vec<String> {
        let mut args = self.foreground_args(vm);
        args.push("--detach".into());
        args
    }

    /// Arguments that run it in the foreground.
    pub fn foreground_args(&self, vm: &str) -> Vec<String> {
        let (cpus, memory) = (self.cpus.to_string(), self.memory);
        [
            "run",
            vm,
            "--cpus",
            &cpus,
            "--memory",
            memory,
            "--cmdline",
            &self.cmdline,
        ]
        .into_iter()
        .map(str::to_owned)
        .chain(self.more.iter().cloned())
        .collect()
    }
}
