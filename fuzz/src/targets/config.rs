//! Configuration files.

use machine::config::{MAX_CPUS, MAX_ID};

use super::seeds::texts;
use crate::{Memory, Target};

/// The TOML of `run --config`.
pub(super) const CONFIG: Target = Target {
    name: "config",
    run,
    seeds,
    words: &[
        "[[disk]]\n",
        "[[net]]\n",
        "tap=",
        "mac=",
        "path=",
        "id=",
        "memory=",
        "\"1GiB\"",
        "cpus=",
        "readonly=true",
        "format=",
        "\"raw\"",
        "name=",
        "kernel=",
        "initrd=",
        "cmdline=",
        "pages=",
        "cpu=",
        "\"\"\"",
        "\n",
    ],
    longest: 2048,
    memory: Memory {
        base: 1 << 20,
        per_byte: 1 << 10,
    },
};

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let options = match machine::fuzzing::options_from_toml(&text) {
        Ok(options) => options,
        Err(message) => {
            assert!(!message.is_empty());
            return;
        }
    };
    assert_eq!(options.clone().or(options.clone()), options);
    if let Ok(config) = options.into_config("guest".into()) {
        assert!((1..=MAX_CPUS).contains(&config.cpus));
        assert!(config.memory > 0 && config.memory.is_multiple_of(migration::PAGE_SIZE));
        for disk in &config.disks {
            assert!((1..=MAX_ID).contains(&disk.id.len()));
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    texts(&[
        "",
        "name = \"web\"\nkernel = \"vmlinuz\"\ninitrd = \"i.img\"\ncmdline = \"quiet\"\ncpus = 4\n\
         memory = \"1.5GiB\"\npages = \"thp\"\ncpu = \"host\"\n",
        "memory = 268435456\n[[disk]]\npath = \"root.img\"\nformat = \"raw\"\nid = \"root\"\n\
         [[disk]]\npath = \"/srv/data.img\"\nreadonly = true\n",
        "[[net]]\ntap = \"tap0\"\nmac = \"52:54:00:12:34:56\"\nqueues = 2\nid = \"lan\"\n",
    ])
}
