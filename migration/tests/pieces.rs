//! Frames of plain bytes and guest memory arrive in the order of their pieces, through every transport.

mod double;

use std::io::ErrorKind;
use std::time::Duration;

use double::{layout, make_ram, network};
use migration::raw::{Ram, Span};
use migration::transport::{Connect, Connection, Listen, Patience, Piece, gather, memory};

const PAGE: usize = migration::PAGE_SIZE as usize;
const PAGES: u64 = 128;

/// Guest memory in which no two words are alike.
fn ram() -> Ram {
    let layout = layout(2 * PAGES);
    let ram = Ram::new(&make_ram(&layout).0, &layout).unwrap();
    for page in 0..PAGES {
        let words = (0..PAGE as u64 / 8).map(|word| page << 32 | word);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        ram.slice(span(page, 1)).copy_from(&bytes);
    }
    ram
}

fn span(page: u64, pages: u64) -> Span {
    Span {
        region: 0,
        page,
        pages,
    }
}

/// Both ends of a connection of each transport; the folder keeps a socket of one.
fn transports(folder: &tempfile::TempDir) -> [(&'static str, [Box<dyn Connection>; 2]); 3] {
    let patience = Patience {
        timeout: Duration::from_secs(10),
        give_up: &|| false,
    };
    let (connect, listen) = memory::network(&[]);
    let here = connect.connect(patience).unwrap();
    let there = listen.accept(patience.timeout).unwrap().unwrap();
    let unix = network::listening(&format!("unix:{}/s", folder.path().display()));
    [
        ("memory", [here, there]),
        ("tcp", network::connection(&network::tcp())),
        ("unix", network::connection(&unix)),
    ]
}

const fn bytes<'a>(at: usize, len: usize) -> Piece<'a> {
    Piece::Bytes { at, len }
}

/// Frames whose pieces are copied, go by reference, and both; none has two pieces of the same place.
fn frames(ram: &Ram) -> Vec<(&'static str, Vec<Piece<'_>>)> {
    let pages = |page, pages| Piece::Ram(ram.slice(span(page, pages)));
    let part = |page, from, len| Piece::Ram(ram.slice(span(page, 1)).part(from, len));
    let mixed = vec![
        bytes(500, 32),
        pages(1, 20),
        bytes(0, 7),
        pages(30, 1),
        bytes(7, 0),
        pages(31, 16),
        pages(50, 16),
        bytes(7, 100),
        bytes(107, 300),
        part(70, 100, 3000),
        pages(80, 17),
    ];
    let many = (0..256)
        .flat_map(|at| {
            let memory = part(at as u64 % PAGES, at / PAGES as usize * 1000, 1000);
            [bytes(at * 2, 2), memory, pages(0, 0)]
        })
        .collect();
    vec![
        ("nothing", vec![]),
        ("only empty pieces", vec![bytes(0, 0); 300]),
        ("bytes", vec![bytes(30, 20), bytes(0, 30)]),
        ("memory by reference", vec![pages(0, 33)]),
        ("memory that is copied", vec![pages(9, 2), pages(7, 1)]),
        ("bytes at the end", vec![pages(0, 40), bytes(0, 600)]),
        ("a mixture", mixed),
        ("more pieces than go into one call", many),
    ]
}

/// The plain bytes of a frame.
fn buffer() -> Vec<u8> {
    (0..600).map(|at| (at * 31) as u8).collect()
}

#[test]
fn pieces_arrive_in_their_order_through_every_transport() {
    let ram = ram();
    let folder = tempfile::tempdir().unwrap();
    for (transport, [ours, theirs]) in transports(&folder) {
        for (name, pieces) in frames(&ram) {
            let buffer = buffer();
            let expected = gather(&buffer, &pieces).unwrap();
            let mut arrived = vec![0; expected.len()];
            std::thread::scope(|scope| {
                scope.spawn(|| theirs.receive(&mut arrived).unwrap());
                ours.send_pieces(&buffer, &pieces).unwrap();
            });
            assert!(arrived == expected, "{name} over {transport}");
            assert!(!theirs.wait_readable(Duration::ZERO).unwrap(), "{name}");
        }
    }
}

#[test]
fn pieces_are_filled_in_their_order_through_every_transport() {
    let from = ram();
    let folder = tempfile::tempdir().unwrap();
    for (transport, [ours, theirs]) in transports(&folder) {
        for (name, pieces) in frames(&from) {
            let length = pieces.iter().map(Piece::len).sum::<usize>();
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8 + 1).collect();
            let mut buffer = buffer();
            std::thread::scope(|scope| {
                scope.spawn(|| theirs.receive_pieces(&mut buffer, &pieces).unwrap());
                ours.send(&sent).unwrap();
            });
            let arrived = gather(&buffer, &pieces).unwrap();
            assert!(arrived == sent, "{name} over {transport}");
        }
    }
}

#[test]
fn a_piece_outside_of_the_bytes_is_refused_and_nothing_is_sent_of_it() {
    let folder = tempfile::tempdir().unwrap();
    for (name, [ours, theirs]) in transports(&folder) {
        for piece in [bytes(0, 5), bytes(4, 1), bytes(5, 0), bytes(usize::MAX, 2)] {
            let sent = ours.send_pieces(b"four", &[piece]).unwrap_err();
            assert_eq!(sent.kind(), ErrorKind::InvalidInput, "{name}");
            let received = theirs.receive_pieces(&mut [0; 4], &[piece]).unwrap_err();
            assert_eq!(received.kind(), ErrorKind::InvalidInput, "{name}");
        }
        assert!(!theirs.wait_readable(Duration::ZERO).unwrap(), "{name}");
    }
}
