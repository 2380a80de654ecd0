//! Pages travel without an allocation for each frame, at either side.
#![allow(unsafe_code)] // Counting allocations takes an allocator.

mod double;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use double::{Destination, Guest, Source, Witness, network};
use migration::journal::MemoryJournal;
use migration::request::MigrateRequest;
use migration::steering::Steering;
use migration::threads::{STARTED, ThreadKind};
use migration::{MigrationId, destination, source};

thread_local! {
    /// Set for threads that carry data connections.
    static IS_STREAM: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no thread-locals any more.
        if IS_STREAM.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all streams while a guest with `mib` of data moves, half of it in runs, half page by page.
fn allocations(mib: u64) -> u64 {
    let pages = mib * 256;
    let witness: Arc<Witness> = Arc::default();
    let vm = Source::new(2 * pages, Guest::Idle, &witness);
    vm.fill(0, 0, pages / 2);
    for page in (pages / 2..pages).step_by(2) {
        vm.fill(0, page, 1);
    }
    let mut into = Destination::new(&witness);
    let (connect, listen) = network::tcp();
    let request = MigrateRequest {
        streams: Some(2),
        ..MigrateRequest::new("unix:/there")
    };
    let options = source::Options::new(MigrationId::random().unwrap(), request);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = destination::Options::default();
            let journal = MemoryJournal::default();
            destination::receive(&listen, &mut into, &options, &Steering::new(), &journal)
        });
        let journal = MemoryJournal::default();
        source::migrate(&vm, &connect, &options, &Steering::new(), &journal)
    });
    assert_eq!(outcome.report().status, "completed", "{outcome:?}");
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

#[test]
fn more_frames_take_no_more_allocations() {
    STARTED.set(|kind| IS_STREAM.set(kind == ThreadKind::Stream));
    let few = allocations(8);
    let many = allocations(72);
    println!("{few} allocations for 8 MiB, {many} for 72 MiB");
    // There are more than 64 frames more, at each side; a buffer may grow late.
    assert!(many < few + 32, "{few} for 8 MiB, {many} for 72 MiB");
}
