//! Short texts: quantities, addresses and disks as users write them, lines of the probe guest, keys.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use control::units::{ByteSize, Rate, Span, human_bytes, human_ms};
use devices::virtio::net::Mac;
use machine::config::{CpuModel, DiskArg, DiskFormat, IncomingDisk, NetArg, PageBacking};
use machine::probe::{ProbeLine, Tick, probe_lines};
use migration::address::Address;
use migration::{HostId, MigrationId};

use super::seeds::texts;
use crate::target::SMALL;
use crate::{Input, Target};

/// Quantities, addresses, disks and identifiers.
pub(super) const UNITS: Target = Target {
    name: "units",
    run: units,
    seeds: || {
        texts(&[
            "1.5GiB",
            "300ms",
            "500MiB/s",
            "unlimited",
            "[::1]:80",
            "unix:/run/x",
            "fd:3",
            "d.img,format=raw,readonly,id=x",
            "x=/d.img",
            "thp",
            "host",
            "host.example:7",
            "00112233445566778899aabbccddeeff",
        ])
    },
    words: &[
        "KiB",
        "TiB",
        "GB",
        "ms",
        "us",
        "/s",
        "unix:",
        "fd:",
        "0.000000001",
        "18446744073709551615",
        ",id=",
        ",format=raw",
        "[::1]:",
    ],
    longest: 256,
    memory: SMALL,
};

/// What a guest prints on its serial port.
pub(super) const PROBE: Target = Target {
    name: "probe",
    run: probe,
    seeds: || {
        texts(&[
            "PROBE hello version=1\nPROBE bye reason=asked\r\n",
            "PROBE tick n=12 up_ms=1200 gap_us=85 max_gap_us=9100 print_us=70 dirtied=5 \
             ledger_pages=6 ledger_verified=7 fill_verified=8 blocks_written=9 blocks_verified=10 \
             faults=0 mono_ns=99\n",
            "junkPROBE fault kind=fill gpa=0x1000 expected=0x1 found=0x2\nPROBE rng bytes=4\n",
            "PROBE blocks checked=1 blocks=2 valid=3 newest=4 flushed=5\n",
        ])
    },
    words: &[
        "PROBE ",
        "tick ",
        "ready ",
        "hello ",
        "=0x",
        "=",
        "\n",
        "version=1",
    ],
    longest: 1024,
    memory: SMALL,
};

/// What is typed at a console.
pub(super) const KEYS: Target = Target {
    name: "keys",
    run: keys,
    seeds: || texts(&["\u{1}ls\n\u{1d}", "\u{0}ls\u{1d}\n", "\u{1}\u{1d}\u{1d}x"]),
    words: &["\u{1d}"],
    longest: 256,
    memory: SMALL,
};

/// What is printed reads back as the same.
fn reads_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse().ok(), Some(value));
    }
}

fn units(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    reads_back::<ByteSize>(text);
    reads_back::<Span>(text);
    reads_back::<Rate>(text);
    reads_back::<Address>(text);
    reads_back::<MigrationId>(text);
    reads_back::<HostId>(text);
    reads_back::<Mac>(text);
    let _ = text.parse::<NetArg>();
    let _ = text.parse::<CpuModel>();
    let _ = text.parse::<DiskFormat>();
    let _ = text.parse::<PageBacking>();
    let _ = text.parse::<IncomingDisk>();
    if let Ok(disk) = text.parse::<DiskArg>() {
        assert!(!disk.path.as_os_str().is_empty());
    }
    let number = f64::from_bits(Input::new(bytes).u64());
    let _ = (human_bytes(number), human_ms(number));
}

fn probe(bytes: &[u8]) {
    let output = &*String::from_utf8_lossy(bytes);
    let _ = output.parse::<Tick>();
    let read = probe_lines(output).count();
    let lines = output
        .lines()
        .filter(|line| line.parse::<ProbeLine>().is_ok());
    assert!(read <= lines.count());
}

fn keys(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let terminal = input.u8() & 1 == 1;
    let typed = input.rest();
    let (kept, escaped) = vmm::fuzzing::typed(typed, terminal);
    let end = typed.iter().position(|key| terminal && *key == 0x1d);
    assert_eq!(kept, typed[..end.unwrap_or(typed.len())]);
    assert_eq!(escaped, end.is_some());
}
