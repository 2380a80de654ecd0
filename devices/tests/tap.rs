//! Real taps, in a network namespace of the test's own.
#![allow(unsafe_code)] // A namespace is left by a system call that has no safe form.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::Buffer;
use devices::virtio::net::{NetBackend, Offloads, Tap, TapError};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Runs `test` on a thread in a new network namespace, with the taps that the shell commands make.
fn in_namespace(commands: &'static [&'static str], test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        // SAFETY: the call changes what this thread alone sees of networks.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("skipped: a network namespace needs root");
            return;
        }
        if let Err(error) = std::fs::File::open("/dev/net/tun") {
            println!("skipped: /dev/net/tun: {error}");
            return;
        }
        for command in commands {
            let mut words = command.split(' ');
            let made = Command::new(words.next().unwrap()).args(words).output();
            match made {
                Ok(made) if made.status.success() => {}
                Ok(made) => panic!("{command}: {}", String::from_utf8_lossy(&made.stderr)),
                Err(error) => {
                    println!("skipped: {command}: {error}");
                    return;
                }
            }
        }
        test();
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The next packet, if there is one within a moment.
fn next(tap: &Tap, pair: u16) -> Option<Vec<u8>> {
    let mut fds = [PollFd::from_borrowed_fd(tap.waiting(pair), PollFlags::IN)];
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    rustix::event::poll(&mut fds, Some(&moment)).unwrap();
    let mut memory = vec![0; 70_000];
    match tap.receive(pair, &[Buffer::new(&mut memory)]) {
        Ok(len) => {
            memory.truncate(len);
            Some(memory)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// A request of 10.9.0.2 for the address of 10.9.0.1.
fn arp_request() -> Vec<u8> {
    let mac = [2, 0, 0, 0, 0, 2];
    let mut packet = vec![0; 12];
    packet.extend([0xff; 6]);
    packet.extend(mac);
    packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend(mac);
    packet.extend([10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
    packet.resize(12 + 60, 0);
    packet
}

fn answers(tap: &Tap, pair: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        assert!(Instant::now() < deadline, "the host does not answer");
        let Some(packet) = next(tap, pair) else {
            // The host notices a moment later that there is somebody at the other end.
            let mut request = arp_request();
            // In two pieces, the header split.
            let (first, second) = request.split_at_mut(7);
            tap.send(pair, &[Buffer::new(first), Buffer::new(second)])
                .unwrap();
            continue;
        };
        // The host says other things too.
        if packet[12 + 12..12 + 14] == [8, 6] && packet[12 + 21] == 2 {
            break packet;
        }
    };
    assert_eq!(answer[12..18], [2, 0, 0, 0, 0, 2]);
    assert_eq!(answer[12 + 28..12 + 32], [10, 9, 0, 1]);
}

#[test]
fn packets_pass_between_a_tap_and_its_host() {
    const MAKE: &[&str] = &[
        "ip tuntap add dev one mode tap",
        "ip addr add 10.9.0.1/24 dev one",
        "ip link set one mtu 9000 up",
    ];
    in_namespace(MAKE, || {
        let tap = Tap::open("one", 1).unwrap();
        assert_eq!((tap.name(), tap.mtu(), tap.pairs()), ("one", 9000, 1));
        assert!(Offloads::TCP.are_in(tap.offloads()));
        tap.check(9000, Offloads::TCP).unwrap();
        tap.set_pairs(1).unwrap();
        answers(&tap, 0);
        tap.set_offloads(tap.offloads()).unwrap();
        assert!(matches!(Tap::open("one", 1), Err(TapError::Busy(_))));
        drop(tap);
        Tap::open("one", 1).unwrap();
    });
}

#[test]
fn a_tap_says_why_it_cannot_be_used() {
    const MAKE: &[&str] = &[
        "ip tuntap add dev one mode tap",
        "ip tuntap add dev many mode tap multi_queue",
        "ip link add name bridge type bridge",
    ];
    in_namespace(MAKE, || {
        for name in ["", "a/b", "a b", "a%d", "..", "sixteen-letters-"] {
            assert!(
                matches!(Tap::open(name, 1), Err(TapError::Name(_))),
                "{name}"
            );
        }
        assert!(matches!(Tap::open("none", 1), Err(TapError::Missing(_))));
        let none = Command::new("ip").args(["link", "show", "none"]).output();
        assert!(
            !none.unwrap().status.success(),
            "it was not made by the way"
        );
        assert!(matches!(Tap::open("bridge", 1), Err(TapError::NoTap(_))));
        assert!(matches!(Tap::open("bridge", 2), Err(TapError::NoTap(_))));
        assert!(matches!(Tap::open("one", 2), Err(TapError::OneQueue(_))));
        let many = Tap::open("many", 2).unwrap();
        assert!(matches!(Tap::open("many", 2), Err(TapError::Busy(_))));
        assert!(matches!(Tap::open("many", 1), Err(TapError::Busy(_))));
        let wrong = many.check(9000, Offloads::TCP);
        assert!(matches!(wrong, Err(TapError::Mtu { mtu: 1500, .. })));
        let down = many.check(1500, Offloads::TCP);
        assert!(matches!(down, Err(TapError::Down(_))));
    });
}

#[test]
fn a_silent_tap_hears_nothing_and_forgets_what_came() {
    const MAKE: &[&str] = &[
        "ip tuntap add dev one mode tap",
        "ip tuntap add dev many mode tap multi_queue",
        "ip addr add 10.9.0.1/24 dev one",
        "ip addr add 10.9.1.1/24 dev many",
        "ip link set one up",
        "ip link set many up",
    ];
    in_namespace(MAKE, || {
        for (name, pairs, broadcast) in [("one", 1, "10.9.0.255:9"), ("many", 3, "10.9.1.255:9")] {
            let tap = Arc::new(Tap::open(name, pairs).unwrap());
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_broadcast(true).unwrap();
            let hears = |content: &[u8]| {
                (0..pairs).any(|pair| {
                    let mut memory = vec![0; 2048];
                    while let Ok(len) = tap.receive(pair, &[Buffer::new(&mut memory)]) {
                        assert!(!memory[..len].ends_with(b"too early"), "{name}");
                        if memory[..len].ends_with(content) {
                            return true;
                        }
                    }
                    false
                })
            };
            let comes = |content: &[u8]| {
                let deadline = Instant::now() + Duration::from_secs(10);
                while !hears(content) {
                    assert!(Instant::now() < deadline, "{name}: {content:?} is lost");
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            tap.set_pairs(pairs).unwrap();
            // The host notices a moment later that there is somebody at the other end.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !hears(b"hello") {
                assert!(Instant::now() < deadline, "{name} hears nothing");
                socket.send_to(b"hello", broadcast).unwrap();
            }
            tap.set_pairs(0).unwrap();
            socket.send_to(b"too early", broadcast).unwrap();
            tap.set_pairs(pairs).unwrap();
            socket.send_to(b"in time", broadcast).unwrap();
            comes(b"in time");
            // Nobody looks: what comes waits.
            socket.send_to(b"later", broadcast).unwrap();
            comes(b"later");
            tap.set_pairs(0).unwrap();
            tap.set_pairs(1).unwrap();
        }
    });
}

#[test]
fn a_tap_that_is_deleted_under_its_guest_is_named_as_gone() {
    in_namespace(
        &["ip tuntap add dev t0 mode tap", "ip link set t0 up"],
        || {
            let tap = Tap::open("t0", 1).unwrap();
            tap.set_pairs(1).unwrap();
            let deleted = Command::new("ip").args(["link", "delete", "t0"]).status();
            assert!(deleted.unwrap().success());
            let mut memory = vec![0; 2000];
            let errors = [
                tap.receive(0, &[Buffer::new(&mut memory)]).unwrap_err(),
                tap.send(0, &[Buffer::new(&mut arp_request())]).unwrap_err(),
            ];
            for error in errors {
                assert!(error.to_string().contains("\"t0\" is gone"), "{error}");
            }
        },
    );
}
