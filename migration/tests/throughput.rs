//! Prints how fast memory moves, next to a plain copy over the same sockets; asserts no time.

mod double;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use double::{Destination, Guest, Source, Witness, network};
use migration::journal::MemoryJournal;
use migration::progress::Verify;
use migration::raw::{Ram, Span};
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::transport::Piece;
use migration::vm::{DirtyMemory, RamRegion, SourceMachine};
use migration::{MigrationId, destination, source};

const CHUNK: u64 = 128;

fn pages() -> u64 {
    std::env::var("THROUGHPUT_MIB")
        .ok()
        .and_then(|mib| mib.parse().ok())
        .unwrap_or(64)
        * 256
}

/// Processor time that this process has used, in milliseconds: a busy machine spoils it less.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

/// Copies all memory over `streams` plain sockets: seconds.
fn plain_copy(from: &Ram, to: &Ram, streams: u64) -> f64 {
    let sockets = network::tcp();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for stream in 0..streams {
            let [sender, receiver] = network::connection(&sockets);
            let chunks = move |ram: &Ram| {
                let mut all = Vec::new();
                for (region, r) in ram.regions().iter().enumerate() {
                    for page in (0..r.pages()).step_by(CHUNK as usize) {
                        if page / CHUNK % streams == stream {
                            let pages = CHUNK.min(r.pages() - page);
                            all.push(Span {
                                region,
                                page,
                                pages,
                            });
                        }
                    }
                }
                all
            };
            scope.spawn(move || {
                for span in chunks(from) {
                    sender
                        .send_pieces(&[], &[Piece::Ram(from.slice(span))])
                        .unwrap();
                }
                // Open until all has arrived.
                let _ = sender.receive(&mut [0]);
            });
            scope.spawn(move || {
                for span in chunks(to) {
                    receiver
                        .receive_pieces(&mut [], &[Piece::Ram(to.slice(span))])
                        .unwrap();
                }
            });
        }
    });
    began.elapsed().as_secs_f64()
}

/// Takes from the system as much memory as a run needs and gives it back: what was not used for a
/// while is slow to touch on a virtual host, which would favour whoever runs second.
fn warm_up(layout: &[RamRegion]) {
    let (ram, _file) = double::make_ram(layout);
    let ram = Ram::new(&ram, layout).unwrap();
    for (region, r) in ram.regions().iter().enumerate() {
        let span = Span {
            region,
            page: 0,
            pages: r.pages(),
        };
        ram.slice(span).populate().unwrap();
    }
}

#[test]
fn throughput_is_printed_next_to_a_plain_copy() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(pages(), Guest::Idle, &witness);
    vm.fill(0, 0, pages() / 2);
    vm.fill(1, 0, pages() / 2);
    let layout = vm.describe().unwrap().ram;
    let from = Ram::new(vm.ram(), &layout).unwrap();
    let spin = AtomicBool::new(true);
    let rounds = if pages() > 100_000 { 3 } else { 1 };
    std::thread::scope(|scope| {
        if std::env::var_os("THROUGHPUT_SPIN").is_some() {
            scope.spawn(|| {
                while spin.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for _ in 0..rounds {
            for streams in [1, 2, 4] {
                warm_up(&layout);
                let cpu = cpu_ms();
                let plain = {
                    let (to, _file) = double::make_ram(&layout);
                    plain_copy(&from, &Ram::new(&to, &layout).unwrap(), streams)
                };
                let plain_cpu = cpu_ms() - cpu;
                for verify in [Verify::Stream, Verify::Off] {
                    warm_up(&layout);
                    let cpu = cpu_ms();
                    let (total, down) = migrate_once(&vm, streams as u8, verify);
                    println!(
                        "{streams} streams: plain {:.0} ms, {verify:?} {total:.0} ms ({:.2}), down {down:.1} ms, CPU {plain_cpu} against {} ms",
                        plain * 1e3,
                        plain * 1e3 / total,
                        cpu_ms() - cpu
                    );
                }
            }
        }
        spin.store(false, Ordering::Relaxed);
    });
}

fn migrate_once(vm: &Source, streams: u8, verify: Verify) -> (f64, f64) {
    let (connect, listen) = network::tcp();
    let witness: Arc<Witness> = Arc::default();
    let mut into = Destination::new(&witness);
    let options = source::Options::new(
        MigrationId::random().unwrap(),
        MigrateRequest {
            streams: Some(streams),
            verify,
            ..MigrateRequest::new("unix:/there")
        },
    );
    // It was given away before, and is given away again.
    vm.offered.store(false, Ordering::SeqCst);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = destination::Options::default();
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        source::migrate(
            vm,
            &connect,
            &options,
            &Steering::new(),
            &MemoryJournal::default(),
        )
    });
    let report = outcome.report();
    assert_eq!(report.status, "completed", "{report:?}");
    if std::env::var_os("THROUGHPUT_MIB").is_some() {
        println!(
            "{:?} {:?} setup {:.1}",
            report.iterations, report.downtime, report.setup_ms
        );
    }
    (report.total_ms, report.downtime_ms.unwrap())
}

#[test]
fn scan_and_hash_rates_are_printed() {
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(pages(), Guest::Idle, &witness);
    vm.fill(0, 0, 128);
    let ram = Ram::new(vm.ram(), &vm.describe().unwrap().ram).unwrap();
    let key = migration::raw::HashKey::new(&[7; 16]);
    let page = |page| {
        ram.slice(Span {
            region: 0,
            page,
            pages: 1,
        })
    };
    let rounds = 1000u64;
    let began = cpu_ms();
    let mut sum = 0u64;
    for _ in 0..rounds {
        for at in 0..128 {
            sum = sum.wrapping_add(key.page(at, page(at)));
        }
    }
    let bytes = (rounds * 128 * 4096) as f64;
    println!(
        "hash {:.1} GB/s ({sum:x})",
        bytes / (cpu_ms() - began).max(1) as f64 / 1e6
    );
    page(200).zero();
    let began = cpu_ms();
    let mut zeroes = 0;
    for _ in 0..rounds * 128 {
        zeroes += u64::from(page(200).is_zero());
    }
    println!(
        "zero scan {:.1} GB/s ({zeroes})",
        bytes / (cpu_ms() - began).max(1) as f64 / 1e6
    );
}
