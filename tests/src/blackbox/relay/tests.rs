use super::*;
use crate::blackbox::wire::{Role, frame, hello, kind};
use crate::eventually;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

/// Both ends of a connection through a relay, after its hello.
struct Ends {
    relay: Relay,
    source: TcpStream,
    destination: TcpStream,
}

impl Ends {
    fn new(role: Role, link: Link) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::over(&listener.local_addr().unwrap().to_string(), link);
        let mut source = TcpStream::connect(relay.address()).unwrap();
        source
            .write_all(&hello((1, 1), role, [0; 16], [0; 16]))
            .unwrap();
        let (mut destination, _) = listener.accept().unwrap();
        for end in [&source, &destination] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        destination.read_exact(&mut [0; HELLO_LEN]).unwrap();
        Self {
            relay,
            source,
            destination,
        }
    }
}

/// Everything until the stream ends.
fn all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn link_is_cut_after_exactly_as_many_bytes() {
    let after = HELLO_LEN as u64 + 1000;
    let cut_after = Some((Toward::Destination, after));
    let link = Link {
        cut_after,
        ..Link::default()
    };
    let mut ends = Ends::new(Role::Data, link);
    // The other way is not counted.
    ends.destination.write_all(&[1; 5000]).unwrap();
    ends.source.read_exact(&mut [0; 5000]).unwrap();
    ends.source.write_all(&[2; 1000]).unwrap();
    ends.destination.read_exact(&mut [0; 1000]).unwrap();
    assert!(!ends.relay.is_cut_at_bytes());
    ends.source.write_all(&[3]).unwrap();
    assert!(all(&mut ends.destination).is_empty());
    assert!(all(&mut ends.source).is_empty());
    assert!(ends.relay.is_cut_at_bytes());
    assert_eq!(ends.relay.passed(Toward::Destination), after);
    assert_eq!(ends.relay.passed(Toward::Source), 5000);
}

#[test]
fn half_closed_link_still_carries_the_way_back() {
    let trap = Trap {
        toward: Toward::Destination,
        kind: kind::STATE,
        fate: Fate::HalfClose,
    };
    let mut ends = Ends::new(Role::Control, Link::default().and_trap(trap));
    let first = frame(kind::PREPARE, b"first");
    for bytes in [&first, &frame(kind::STATE, b"lost"), &first] {
        ends.source.write_all(bytes).unwrap();
    }
    assert_eq!(all(&mut ends.destination), first);
    let answer = frame(kind::FAILURE, b"why");
    ends.destination.write_all(&answer).unwrap();
    let mut came = vec![0; answer.len()];
    ends.source.read_exact(&mut came).unwrap();
    assert_eq!(came, answer);
}

#[test]
fn no_answer_to_the_last_frame_comes_back() {
    // However fast the answer is: often enough to meet the moment before the cut.
    for _ in 0..200 {
        let trap = Trap {
            toward: Toward::Destination,
            kind: kind::STATE,
            fate: Fate::PassAndCut,
        };
        let mut ends = Ends::new(Role::Control, Link::default().and_trap(trap));
        let last = frame(kind::STATE, b"last");
        ends.source.write_all(&last).unwrap();
        let mut came = vec![0; last.len()];
        ends.destination.read_exact(&mut came).unwrap();
        assert_eq!(came, last);
        let _ = ends.destination.write_all(&frame(kind::READY, b"answer"));
        assert!(all(&mut ends.source).is_empty());
        assert!(ends.relay.is_sprung());
    }
}

#[test]
fn stalled_way_holds_what_is_sent_until_it_goes_on() {
    let mut ends = Ends::new(Role::Data, Link::default());
    ends.relay.stall_toward(Toward::Source);
    ends.destination.write_all(b"held").unwrap();
    ends.source.write_all(b"passes").unwrap();
    ends.destination.read_exact(&mut [0; 6]).unwrap();
    ends.source.set_nonblocking(true).unwrap();
    let error = ends.source.read(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(ends.relay.passed(Toward::Source), 0);
    ends.relay.go_on();
    let mut came = [0; 4];
    eventually(PATIENCE, || ends.source.read(&mut came).ok()).unwrap();
    assert_eq!(&came, b"held");
}

#[test]
fn each_way_has_a_delay_of_its_own_and_keeps_order() {
    let delay = Duration::from_millis(60);
    let link = Link {
        delay_toward_source: delay,
        ..Link::default()
    };
    let mut ends = Ends::new(Role::Data, link);
    let begin = Instant::now();
    let sent: Vec<u8> = (0..=255).collect();
    for byte in &sent {
        ends.destination.write_all(&[*byte]).unwrap();
    }
    drop(ends.destination);
    assert_eq!(all(&mut ends.source), sent);
    assert!(begin.elapsed() >= delay, "{:?}", begin.elapsed());
    assert!(begin.elapsed() < delay * 64, "{:?}", begin.elapsed());
}
