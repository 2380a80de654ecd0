//! A guest with a network that moves from one tap of a bridge to another, in a network namespace of the
//! test's own: what those who speak with it see.
#![allow(unsafe_code)] // Namespaces and packet sockets have no safe form.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use control::instance::{Instance, Requester, StopMode, VmState};
use migration::progress::Event;
use migration::request::MigrateRequest;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use crate::config::{CpuModel, NetConfig, ReceiveConfig, RunConfig};
use crate::instance::launch::receive;
use crate::instance::launch::run;
use crate::memory::{PageBacking, RamFile};
use crate::tests::has_kvm;
use crate::tests::moving::{Host, endpoint, held, hub, last_event, wait_for};

const GUEST: &str = "10.8.0.2:7";
/// What the guest puts behind what it sends back by UDP: its number, its tick and its time.
const TRAILER: usize = 24;
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` on a thread in a network namespace with a bridge (10.8.0.1), two taps on it for several
/// queues, and one that is alone.
fn on_a_bridge(test: impl FnOnce() + Send + 'static) {
    const MAKE: [&str; 10] = [
        "link set lo up",
        "link add name bridge type bridge",
        "addr add 10.8.0.1/24 dev bridge",
        "link set bridge up",
        "tuntap add dev here mode tap multi_queue",
        "tuntap add dev there mode tap multi_queue",
        "link set here master bridge",
        "link set there master bridge",
        "link set here up",
        "link set there up",
    ];
    if !has_kvm() {
        return;
    }
    let ran = thread::spawn(move || {
        // SAFETY: the call changes what this thread, and those that it starts, see of networks.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("skipped: a network namespace needs root");
            return;
        }
        if let Err(error) = std::fs::File::open("/dev/net/tun") {
            println!("skipped: /dev/net/tun: {error}");
            return;
        }
        for line in MAKE {
            match Command::new("ip").args(line.split(' ')).output() {
                Ok(done) if done.status.success() => {}
                Ok(done) => panic!("ip {line}: {}", String::from_utf8_lossy(&done.stderr)),
                Err(error) => {
                    println!("skipped: ip: {error}");
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

fn guest(host: &Host, queues: u16) -> Arc<dyn Instance> {
    let config = RunConfig {
        allow_backing: Vec::new(),
        stale_disks: crate::config::StaleDisks::default(),
        name: "guest".into(),
        kernel: None,
        initrd: None,
        cmdline: "net=10.8.0.2/24".into(),
        cpus: 1,
        memory: 32 << 20,
        pages: PageBacking::Small,
        cpu: CpuModel::Host,
        disks: Vec::new(),
        nets: vec![NetConfig {
            tap: "here".into(),
            mac: None,
            queues,
            id: "net0".into(),
        }],
    };
    held(run(&config, &host.dir("guest"), &hub(), RamFile::memfd()).unwrap())
}

fn destination(host: &Host, nets: &[(&str, &str)]) -> Arc<dyn Instance> {
    let config = ReceiveConfig {
        allow_backing: Vec::new(),
        listen: endpoint("127.0.0.1:0"),
        name: None,
        disks: Vec::new(),
        disk_dir: None,
        nets: nets
            .iter()
            .map(|(id, tap)| ((*id).into(), (*tap).into()))
            .collect(),
        reserve: None,
        max_inbound: migration::units::Rate::default(),
    };
    let dir = host.dir("incoming");
    held(receive(&config, &dir, &hub(), RamFile::memfd()).unwrap())
}

fn asking() -> UdpSocket {
    let socket = UdpSocket::bind("10.8.0.1:0").unwrap();
    socket.connect(GUEST).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    socket
}

/// Asks by UDP until there is an answer: the guest's number of it.
fn ask(socket: &UdpSocket) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut reply = [0; 1500];
    while Instant::now() < deadline {
        socket.send(b"who is there?").unwrap();
        if let Ok(len) = socket.recv(&mut reply) {
            assert_eq!(len, 13 + TRAILER);
            assert_eq!(&reply[..13], b"who is there?");
            return u64::from_be_bytes(reply[13..21].try_into().unwrap());
        }
    }
    panic!("the guest does not answer");
}

fn echo(stream: &mut TcpStream, bytes: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).unwrap());
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes, "other bytes came back");
    });
}

fn ping() {
    let socket = rustix::net::socket(
        AddressFamily::INET,
        SocketType::RAW,
        Some(rustix::net::ipproto::ICMP),
    )
    .unwrap();
    let mut message = [8, 0, 0, 0, 0x12, 0x34, 0, 1, b'a', b'b', b'c', b'd'];
    let sum: u32 = message
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let to: std::net::SocketAddrV4 = "10.8.0.2:0".parse().unwrap();
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &to).unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(PATIENCE),
    )
    .unwrap();
    let mut packet = [0; 256];
    loop {
        let (_, len) = rustix::net::recv(&socket, &mut packet, RecvFlags::empty()).unwrap();
        let reply = &packet[20..len];
        if reply[0] == 0 && reply[4..6] == [0x12, 0x34] {
            assert_eq!(reply[6..], message[6..]);
            return;
        }
    }
}

/// Hears the frames of RARP on all interfaces of the namespace.
fn listening_to_announcements() -> OwnedFd {
    const RARP: u16 = 0x8035;
    let protocol = i32::from(RARP.to_be());
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no addresses.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it was just opened, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn heard(socket: &OwnedFd) -> usize {
    let mut count = 0;
    let mut frame = [0; 256];
    while let Ok((_, len)) = rustix::net::recv(socket, &mut frame, RecvFlags::empty()) {
        assert_eq!(frame[6..9], [0x52, 0x54, 0]);
        assert_eq!(frame[6..12], frame[22..28], "{:x?}", &frame[..len]);
        count += 1;
    }
    count
}

#[test]
fn connections_to_a_guest_stay_while_it_moves() {
    for queues in [1, 2] {
        // A bridge for each: a destination answers for its guest, and has its tap, until its process ends.
        on_a_bridge(move || {
            let (first, second) = (Host::new(), Host::new());
            let source = guest(&first, queues);
            let udp = asking();
            let before = ask(&udp);
            ping();
            let mut tcp = TcpStream::connect(GUEST).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let bytes: Vec<u8> = (0..200_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
            echo(&mut tcp, &bytes);

            let target = destination(&second, &[("net0", "there")]);
            let announcements = listening_to_announcements();
            assert_eq!(heard(&announcements), 0);
            let moving = AtomicBool::new(true);
            thread::scope(|scope| {
                // Somebody speaks with it all the time.
                let speaking = scope.spawn(|| {
                    while moving.load(Ordering::SeqCst) {
                        echo(&mut tcp, &bytes[..3000]);
                    }
                });
                source
                    .migrate(
                        MigrateRequest::new(target.status().listen.unwrap()),
                        Vec::new(),
                    )
                    .unwrap();
                let end = last_event(&*source);
                moving.store(false, Ordering::SeqCst);
                speaking.join().unwrap();
                match end {
                    Event::Completed(report) => assert_eq!(report.warnings, []),
                    other => panic!("{other:?}"),
                }
            });
            let deadline = Instant::now() + PATIENCE;
            let mut rounds = 0;
            while rounds < 5 {
                rounds += heard(&announcements);
                assert!(Instant::now() < deadline, "{rounds} announcements");
                thread::sleep(Duration::from_millis(5));
            }
            // The same guest goes on counting, and its connection goes on.
            assert!(ask(&udp) > before);
            ping();
            echo(&mut tcp, &bytes);
            tcp.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(tcp.read(&mut [0]).unwrap(), 0, "both ends are done");
            target.stop(StopMode::Force, Requester::Client).unwrap();
            wait_for(&*source, VmState::Migrated);
        });
    }
}

#[test]
fn a_destination_whose_tap_is_missing_or_busy_refuses_at_once() {
    on_a_bridge(|| {
        let first = Host::new();
        let source = guest(&first, 1);
        let udp = asking();
        ask(&udp);
        let taps: [(&[(&str, &str)], &str); 3] = [
            // The source itself has it.
            (&[], "in use"),
            (&[("net0", "nowhere")], "no interface nowhere"),
            (&[("lan", "there")], "no network interface lan"),
        ];
        for (nets, why) in taps {
            let second = Host::new();
            let target = destination(&second, nets);
            source
                .migrate(
                    MigrateRequest::new(target.status().listen.unwrap()),
                    Vec::new(),
                )
                .unwrap();
            match last_event(&*source) {
                Event::Failed(report) => {
                    let told = serde_json::to_string(&report.error).unwrap();
                    assert!(told.contains("\"negotiate.net\""), "{told}");
                    assert!(told.contains(why), "{told}");
                }
                other => panic!("{other:?}"),
            }
            ask(&udp);
        }
        source.stop(StopMode::Force, Requester::Holder).unwrap();
    });
}
