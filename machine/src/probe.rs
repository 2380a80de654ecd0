//! The probe guest and the lines that it prints (docs/probe.md).

mod disk;
mod fields;

use std::str::FromStr;

pub use disk::{DiskCounts, DiskReady, DiskStats, DiskVerified};
use fields::Fields;
pub use fields::ProbeLineError;

/// The probe guest, a bare-metal PVH ELF image, compiled by build.rs from resources/probe. It is
/// what `vmm run` boots without `--kernel`.
pub static PROBE_GUEST: &[u8] = include_bytes!(env!("PROBE_GUEST"));

/// The guest has begun; nothing is filled or started yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Version of the lines.
    pub version: u32,
}

/// Memory is filled, all CPUs run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Version of the lines.
    pub version: u32,
    /// CPUs that run.
    pub cpus: u32,
    /// RAM that the boot information tells, MiB.
    pub ram_mib: u64,
    /// Content of filled memory.
    pub fill: String,
    /// Memory filled, MiB.
    pub fill_mib: u64,
    /// Size of the ledger, MiB.
    pub ledger_mib: u64,
    /// Pages dirtied per second, wanted.
    pub dirty_rate: u64,
    /// Frequency of the TSC.
    pub tsc_khz: u64,
    /// Whether the clock is kvmclock (1) or the TSC alone (0).
    pub kvmclock: u64,
    /// Milliseconds since the guest's first instruction at CPL3.
    pub up_ms: u64,
}

/// What the guest counted so far; `gap_us` and `print_us` are since the last tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Counted from 1.
    pub n: u64,
    /// Milliseconds since boot, by the TSC.
    pub up_ms: u64,
    /// Largest time between two loop passes of any CPU since the last tick, printing included.
    pub gap_us: u64,
    /// The largest such time since boot or since `g` was received.
    pub max_gap_us: u64,
    /// Largest time of a pass of CPU 0 that sent bytes to the serial port.
    pub print_us: u64,
    /// Pages dirtied.
    pub dirtied: u64,
    /// Pages of the ledger.
    pub ledger_pages: u64,
    /// Pages of the ledger verified, each as often as it was.
    pub ledger_verified: u64,
    /// Filled pages verified, each as often as it was.
    pub fill_verified: u64,
    /// Blocks whose write was acknowledged.
    pub blocks_written: u64,
    /// Blocks read back and compared.
    pub blocks_verified: u64,
    /// Faults found.
    pub faults: u64,
    /// kvmclock's time, or the TSC's since boot.
    pub mono_ns: u64,
}

/// Something lost, stale, torn or refused; docs/probe.md lists the kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: String,
    /// Guest-physical address, or number of the block.
    pub gpa: u64,
    /// What should be there; a word of the command line stays text.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The disk load that found it, counted from 0 on the command line.
    pub disk: Option<u64>,
}

/// The scan of the disk at the start is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// 1 when they were compared with what must have survived.
    pub checked: u64,
    /// Blocks in use.
    pub blocks: u64,
    /// Blocks that an earlier run wrote and that are whole.
    pub valid: u64,
    /// Newest generation found.
    pub newest: u64,
    /// Generation up to which all was flushed.
    pub flushed: u64,
}

/// What passed on the network since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetCounts {
    /// The tick that it was counted at.
    pub n: u64,
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames that found no free buffer.
    pub unsent: u64,
    /// ARP requests answered.
    pub arp: u64,
    /// ICMP echo requests answered.
    pub icmp: u64,
    /// UDP datagrams echoed.
    pub udp: u64,
    /// Frames that were not for the guest.
    pub ignored: u64,
    /// Packets with a wrong checksum.
    pub damaged: u64,
    /// TCP connections that are open.
    pub tcp_open: u64,
    /// TCP connections that were opened.
    pub tcp_accepted: u64,
    /// TCP connections that both sides ended.
    pub tcp_closed: u64,
    /// TCP connections that ended otherwise.
    pub tcp_reset: u64,
    /// Bytes received by TCP, in order.
    pub tcp_bytes: u64,
    /// TCP segments sent again.
    pub tcp_resent: u64,
}

/// The guest ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bye {
    /// `exit_after`, `asked`, `crash-triple`, `crash-reset`, `exception` or `panic`.
    pub reason: String,
}

/// A line of the probe guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeLine {
    /// `PROBE hello`
    Hello(Hello),
    /// `PROBE ready`
    Ready(Ready),
    /// `PROBE tick`
    Tick(Tick),
    /// `PROBE fault`
    Fault(Fault),
    /// `PROBE blocks`
    Blocks(Blocks),
    /// `PROBE disk-ready`
    DiskReady(DiskReady),
    /// `PROBE disk`
    Disk(DiskCounts),
    /// `PROBE disk-stats`
    DiskStats(DiskStats),
    /// `PROBE disk-verify`
    DiskVerified(DiskVerified),
    /// `PROBE rng`: bytes read from virtio-rng.
    Rng {
        /// How many.
        bytes: u64,
    },
    /// `PROBE link`: the guest's network interface.
    Link {
        /// MAC address.
        mac: String,
        /// IPv4 address.
        ip: String,
    },
    /// `PROBE net`
    Net(NetCounts),
    /// `PROBE bye`
    Bye(Bye),
}

impl FromStr for ProbeLine {
    type Err = ProbeLineError;

    /// Reads one line. What stands before `PROBE ` (an interrupted line of another program) is
    /// skipped, and so are fields that this version does not know.
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let start = line.rfind("PROBE ").ok_or(ProbeLineError::NotProbe)?;
        let mut words = line[start + 6..].split_ascii_whitespace();
        let kind = words.next().ok_or(ProbeLineError::NotProbe)?;
        let fields = Fields::of(words);
        Ok(match kind {
            "hello" => Self::Hello(Hello {
                version: fields.small("version")?,
            }),
            "ready" => Self::Ready(Ready {
                version: fields.small("version")?,
                cpus: fields.small("cpus")?,
                ram_mib: fields.number("ram_mib")?,
                fill: fields.text("fill")?,
                fill_mib: fields.number("fill_mib")?,
                ledger_mib: fields.number("ledger_mib")?,
                dirty_rate: fields.number("dirty_rate")?,
                tsc_khz: fields.number("tsc_khz")?,
                kvmclock: fields.number("kvmclock")?,
                up_ms: fields.number("up_ms")?,
            }),
            "tick" => Self::Tick(Tick {
                n: fields.number("n")?,
                up_ms: fields.number("up_ms")?,
                gap_us: fields.number("gap_us")?,
                max_gap_us: fields.number("max_gap_us")?,
                print_us: fields.number("print_us")?,
                dirtied: fields.number("dirtied")?,
                ledger_pages: fields.number("ledger_pages")?,
                ledger_verified: fields.number("ledger_verified")?,
                fill_verified: fields.number("fill_verified")?,
                blocks_written: fields.number("blocks_written")?,
                blocks_verified: fields.number("blocks_verified")?,
                faults: fields.number("faults")?,
                mono_ns: fields.number("mono_ns")?,
            }),
            "fault" => Self::Fault(Fault {
                kind: fields.text("kind")?,
                gpa: fields.number("gpa")?,
                expected: fields.text("expected")?,
                found: fields.text("found")?,
                disk: fields.optional("disk")?,
            }),
            "blocks" => Self::Blocks(Blocks {
                checked: fields.number("checked")?,
                blocks: fields.number("blocks")?,
                valid: fields.number("valid")?,
                newest: fields.number("newest")?,
                flushed: fields.number("flushed")?,
            }),
            "disk-ready" => Self::DiskReady(DiskReady::of(&fields)?),
            "disk" => Self::Disk(DiskCounts::of(&fields)?),
            "disk-stats" => Self::DiskStats(DiskStats::of(&fields)?),
            "disk-verify" => Self::DiskVerified(DiskVerified::of(&fields)?),
            "rng" => Self::Rng {
                bytes: fields.number("bytes")?,
            },
            "link" => Self::Link {
                mac: fields.text("mac")?,
                ip: fields.text("ip")?,
            },
            "net" => Self::Net(NetCounts {
                n: fields.number("n")?,
                received: fields.number("received")?,
                sent: fields.number("sent")?,
                unsent: fields.number("unsent")?,
                arp: fields.number("arp")?,
                icmp: fields.number("icmp")?,
                udp: fields.number("udp")?,
                ignored: fields.number("ignored")?,
                damaged: fields.number("damaged")?,
                tcp_open: fields.number("tcp_open")?,
                tcp_accepted: fields.number("tcp_accepted")?,
                tcp_closed: fields.number("tcp_closed")?,
                tcp_reset: fields.number("tcp_reset")?,
                tcp_bytes: fields.number("tcp_bytes")?,
                tcp_resent: fields.number("tcp_resent")?,
            }),
            "bye" => Self::Bye(Bye {
                reason: fields.text("reason")?,
            }),
            other => return Err(ProbeLineError::UnknownKind(other.to_owned())),
        })
    }
}

impl FromStr for Tick {
    type Err = ProbeLineError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        match line.parse()? {
            ProbeLine::Tick(tick) => Ok(tick),
            _ => Err(ProbeLineError::UnknownKind("not a tick".to_owned())),
        }
    }
}

/// The probe's lines in `output`, in order; everything else is skipped. Only whole lines count: a
/// last one without its line end is not there yet.
pub fn probe_lines(output: &str) -> impl Iterator<Item = ProbeLine> + '_ {
    output
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|l| l.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: &str = "PROBE tick n=12 up_ms=1200 gap_us=85 max_gap_us=9100 print_us=70 \
        dirtied=5 ledger_pages=6 ledger_verified=7 fill_verified=8 blocks_written=9 \
        blocks_verified=10 faults=0 mono_ns=99";

    #[test]
    fn embedded_guest_is_an_elf_image_with_a_pvh_note() {
        assert!(PROBE_GUEST.starts_with(b"\x7fELF"));
        let note = [4u32.to_le_bytes(), 8u32.to_le_bytes(), 18u32.to_le_bytes()].concat();
        let note = [note.as_slice(), b"Xen\0"].concat();
        assert!(PROBE_GUEST.windows(note.len()).any(|window| window == note));
    }

    #[test]
    fn tick_is_read_field_by_field() {
        let tick: Tick = TICK.parse().unwrap();
        assert_eq!(
            (tick.n, tick.up_ms, tick.gap_us, tick.max_gap_us),
            (12, 1200, 85, 9100)
        );
        assert_eq!((tick.print_us, tick.dirtied, tick.ledger_pages), (70, 5, 6));
        assert_eq!((tick.ledger_verified, tick.fill_verified), (7, 8));
        assert_eq!((tick.blocks_written, tick.blocks_verified), (9, 10));
        assert_eq!((tick.faults, tick.mono_ns), (0, 99));
    }

    #[test]
    fn junk_between_lines_is_skipped() {
        let output = format!(
            "SeaBIOS\r\nPROBE hello version=1\n\u{1b}[2JPROBE ti{TICK}\nPROBE nonsense a=b\n\
             PROBE fault kind=fill gpa=0x1000 expected=0x1 found=0x2 more=3\nPROBE tick n=1\n\
             PROBE bye reason=asked\r\nPROBE bye reason=as"
        );
        let lines: Vec<_> = probe_lines(&output).collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], ProbeLine::Hello(Hello { version: 1 }));
        assert!(matches!(lines[1], ProbeLine::Tick(tick) if tick.n == 12));
        assert!(matches!(&lines[2], ProbeLine::Fault(f) if f.gpa == 0x1000 && f.kind == "fill"));
        assert_eq!(
            lines[3],
            ProbeLine::Bye(Bye {
                reason: "asked".to_owned()
            })
        );
    }

    #[test]
    fn lines_of_disk_loads_are_read() {
        let output = "PROBE disk-ready disk=0 serial=data id=0x2a seed=0x1 run=0xff sector=8 \
             unit=4096 units=256 fill=16 pattern=random sizes=1/2 writes=40 discards=5 zeroes=5 \
             reads=45 verifies=5 depth=32 cpu=1\n\
             PROBE disk disk=0 end=0 submitted=9 acked=8 flushed=7 in_flight=1 units_read=6 \
             units_written=5 units_verified=4 errors=3 faults=2 passes=1\n\
             PROBE disk-stats disk=0 span=total op=write ms=1000 count=50 iops=50 bytes_s=204800 \
             p50_ns=10 p99_ns=20 p999_ns=30 max_ns=40\n\
             PROBE disk-verify disk=0 pass=1 units=256 blank=2 unknown=3 faults=0 sequence=9\n\
             PROBE fault kind=disk-lost gpa=0x1000 expected=0x9 found=0x0 disk=1\n";
        let lines: Vec<_> = probe_lines(output).collect();
        assert!(matches!(&lines[0], ProbeLine::DiskReady(ready)
            if ready.sizes == [1, 2] && ready.run == 0xff && ready.serial == "data"));
        assert!(matches!(&lines[1], ProbeLine::Disk(counts)
            if !counts.end && counts.flushed == 7 && counts.faults == 2));
        assert!(matches!(&lines[2], ProbeLine::DiskStats(stats)
            if stats.op == "write" && stats.p999_ns == 30));
        assert!(matches!(&lines[3], ProbeLine::DiskVerified(pass) if pass.blank == 2));
        assert!(matches!(&lines[4], ProbeLine::Fault(fault) if fault.disk == Some(1)));
        let wrong = output.replace("sizes=1/2", "sizes=1/x");
        let wrong = wrong.lines().next().unwrap_or("").parse::<ProbeLine>();
        let value = "1/x".to_owned();
        let key = "sizes";
        assert_eq!(wrong, Err(ProbeLineError::Number { key, value }));
    }

    #[test]
    fn bad_fields_are_named() {
        assert_eq!("x".parse::<ProbeLine>(), Err(ProbeLineError::NotProbe));
        assert_eq!(
            "PROBE hello".parse::<ProbeLine>(),
            Err(ProbeLineError::Missing("version"))
        );
        let value = "99999999999".to_owned();
        assert_eq!(
            format!("PROBE hello version={value}").parse::<ProbeLine>(),
            Err(ProbeLineError::Number {
                key: "version",
                value
            })
        );
        assert!(TICK.replace("n=12", "n=-1").parse::<Tick>().is_err());
        assert!("PROBE hello version=1".parse::<Tick>().is_err());
    }
}
