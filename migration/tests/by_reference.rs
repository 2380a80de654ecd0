//! Runs of pages are sent by reference, single pages by copy; a broken connection is an error and no signal.

mod double;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use double::{layout, make_ram, network};
use migration::raw::{Ram, RamSlice, Span};
use migration::transport::{Connection, Piece, gather};

/// Pages of each of the two regions.
const PAGES: u64 = 64;
const PAGE: usize = migration::PAGE_SIZE as usize;
const BEFORE: u8 = 1;
const AFTER: u8 = 2;

fn ram() -> Ram {
    let layout = layout(2 * PAGES);
    Ram::new(&make_ram(&layout).0, &layout).unwrap()
}

fn slice(ram: &Ram, page: u64, pages: u64) -> RamSlice<'_> {
    ram.slice(Span {
        region: 0,
        page,
        pages,
    })
}

fn fill(ram: &Ram, value: u8) {
    slice(ram, 0, PAGES).copy_from(&vec![value; PAGES as usize * PAGE]);
}

fn tcp() -> [Box<dyn Connection>; 2] {
    network::connection(&network::tcp())
}

/// A frame of four plain bytes, then `body`.
const HEAD: &[u8] = b"head";

fn with_head<'a>(body: &[RamSlice<'a>]) -> Vec<Piece<'a>> {
    let pages = body.iter().map(|&slice| Piece::Ram(slice));
    [Piece::all(HEAD)].into_iter().chain(pages).collect()
}

/// What arrives of `body` when its memory is written to between its being sent and its being received.
fn arrives(body: &[RamSlice<'_>], ram: &Ram, [ours, theirs]: [Box<dyn Connection>; 2]) -> Vec<u8> {
    fill(ram, BEFORE);
    ours.send_pieces(HEAD, &with_head(body)).unwrap();
    fill(ram, AFTER);
    let mut arrived = vec![0; 4 + body.iter().map(RamSlice::len).sum::<usize>()];
    theirs.receive(&mut arrived).unwrap();
    assert_eq!(&arrived[..4], HEAD);
    arrived.split_off(4)
}

#[test]
fn runs_of_pages_are_read_when_the_peer_receives_them() {
    let ram = ram();
    let body = [slice(&ram, 1, 20), slice(&ram, 30, 9)];
    let folder = tempfile::tempdir().unwrap();
    let unix = network::listening(&format!("unix:{}/s", folder.path().display()));
    for connections in [tcp(), network::connection(&unix)] {
        assert_eq!(arrives(&body, &ram, connections), vec![AFTER; 29 * PAGE]);
    }
}

#[test]
fn single_pages_and_short_frames_are_read_when_they_are_sent() {
    let ram = ram();
    let single: Vec<_> = (0..32).map(|page| slice(&ram, 2 * page, 1)).collect();
    assert_eq!(arrives(&single, &ram, tcp()), vec![BEFORE; 32 * PAGE]);
    let short = [slice(&ram, 0, 15)];
    assert_eq!(arrives(&short, &ram, tcp()), vec![BEFORE; 15 * PAGE]);
}

#[test]
fn of_a_mixed_frame_only_the_runs_of_pages_go_by_reference() {
    let ram = ram();
    fill(&ram, BEFORE);
    let mut buffer = vec![BEFORE; 200_000];
    let bytes = |at, len| Piece::Bytes { at, len };
    let pages = |page, pages| Piece::Ram(slice(&ram, page, pages));
    // What is read when it is sent, and what is when it is received.
    let frame = [
        (BEFORE, bytes(0, 3)),
        (AFTER, pages(0, 10)),
        (AFTER, pages(10, 10)),
        (BEFORE, bytes(3, 100_000)),
        (BEFORE, pages(30, 8)),
        (BEFORE, bytes(100_003, 5)),
        (BEFORE, pages(40, 8)),
        (BEFORE, bytes(0, 1)),
        (AFTER, pages(48, 16)),
    ];
    let pieces = frame.map(|(_, piece)| piece);
    let folder = tempfile::tempdir().unwrap();
    let unix = network::listening(&format!("unix:{}/s", folder.path().display()));
    let [ours, theirs] = network::connection(&unix);
    ours.send_pieces(&buffer, &pieces).unwrap();
    buffer.fill(AFTER);
    fill(&ram, AFTER);
    for (at, (expected, piece)) in frame.iter().enumerate() {
        let mut arrived = vec![0; piece.len()];
        theirs.receive(&mut arrived).unwrap();
        let is_expected = arrived.iter().all(|byte| byte == expected);
        assert!(is_expected, "piece {at}");
    }
}

#[test]
fn memory_by_reference_outlives_its_mapping() {
    let [ours, theirs] = tcp();
    {
        let ram = ram();
        fill(&ram, BEFORE);
        ours.send_pieces(&[], &[Piece::Ram(slice(&ram, 0, 32))])
            .unwrap();
    }
    let mut arrived = vec![0; 32 * PAGE];
    theirs.receive(&mut arrived).unwrap();
    assert_eq!(arrived, vec![BEFORE; 32 * PAGE]);
}

#[test]
fn a_frame_larger_than_every_buffer_arrives_in_order() {
    let ram = ram();
    for page in 0..PAGES {
        slice(&ram, page, 1).copy_from(&vec![page as u8; PAGE]);
    }
    // More entries than go into one call, in runs of two pages and a half.
    let part = PAGE * 5 / 2;
    let body: Vec<_> = (0..2000)
        .map(|at| Piece::Ram(slice(&ram, at % 60, 3).part(at as usize % PAGE, part)))
        .collect();
    let wanted = gather(&[], &body).unwrap();
    let [ours, theirs] = tcp();
    let mut arrived = vec![0; wanted.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| theirs.receive(&mut arrived).unwrap());
        ours.send_pieces(&[], &body).unwrap();
    });
    assert!(arrived == wanted);
}

#[test]
fn a_peer_that_receives_nothing_or_goes_is_an_error() {
    let ram = ram();
    let frame = with_head(&[slice(&ram, 0, PAGES)]);
    let until_it_fails = |connection: &dyn Connection| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Err(error) = connection.send_pieces(HEAD, &frame) {
                return error.kind();
            }
            assert!(Instant::now() < deadline, "the kernel takes it all");
        }
    };
    let [ours, theirs] = tcp();
    ours.set_io_timeout(Duration::from_millis(50)).unwrap();
    assert_eq!(until_it_fails(&*ours), ErrorKind::TimedOut);
    drop(theirs);

    let [ours, theirs] = tcp();
    drop(theirs);
    let kind = until_it_fails(&*ours);
    assert!(
        matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "{kind:?}"
    );

    // Shut down by another thread, as a cancelled migration is.
    let [ours, _theirs] = tcp();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| until_it_fails(&*ours));
        // Once nothing is taken any more, or before; either way it ends.
        ours.shutdown();
        let kind = sender.join().unwrap();
        assert!(
            matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
            "{kind:?}"
        );
    });
}
