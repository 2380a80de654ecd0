//! A guest moves between two hosts over a network: with little bandwidth, with latency, with stalls
//! and breaks.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::blackbox::relay::{Fate, Link, Relay, Toward, Trap};
use tests::blackbox::wire::kind;
use tests::blackbox::{Console, Ended, Guest, Migration, Vms, fails, guest_lock};
use tests::eventually;
use tests::network::two_hosts::CLIENT;
use tests::network::{Site, TwoHosts};

/// One way of a link that is slow to answer, as between two continents.
const LATENCY: Duration = Duration::from_millis(20);
/// More than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Moves the guest and checks what everybody may see of it.
#[track_caller]
fn moves(from: &Site, to: &Site, via: &str, console: &mut Console, more: &[&str]) -> Value {
    let mut options = vec!["--insecure"];
    options.extend(more);
    let report = Migration::start(&from.host, "guest", via, &options)
        .finish()
        .completed();
    assert_eq!(to.host.status("guest")["state"], "running");
    from.is_clean();
    console.moves_to(&to.host, "guest");
    console.verifies_ledger();
    report
}

/// What becomes of a receiver when the line breaks.
#[derive(Debug, Clone, Copy)]
enum Receiver {
    /// It had built a machine.
    Ends,
    /// It had not, or is to be asked.
    Waits,
}

/// The guest runs where it ran, as if nothing had been tried; the other host has nothing left of it.
#[track_caller]
fn stays(
    from: &Site,
    to: &Site,
    console: &mut Console,
    ended: &Ended,
    receiver: Receiver,
) -> String {
    let why = ended.ended(1, "failed");
    assert_eq!(ended.report["status"], "failed", "{:#}", ended.report);
    assert_eq!(from.host.status("guest")["state"], "running");
    match receiver {
        Receiver::Ends => to.host.is_clean(),
        Receiver::Waits => {
            let _ = to.host.waits_on("guest");
            to.host.waits_no_more("guest");
        }
    }
    console.wait_tick();
    console.is_unharmed();
    why
}

#[test]
fn guest_goes_there_and_back_between_networks_with_consent() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let mut console = hosts.a.host.run("guest", &Guest::dirtying().cpus(2));
    for (from, to) in [(&hosts.a, &hosts.b), (&hosts.b, &hosts.a)] {
        let address = to.receive("guest");
        let run = from.host.vmm(["migrate", "guest", "--to", &address]);
        fails(run, 2, &["--insecure"]);
        // Nobody was asked: the receiver still waits, and takes the guest.
        assert_eq!(to.host.status("guest")["state"], "incoming");
        let report = moves(from, to, &address, &mut console, &[]);
        assert_eq!(report["verified"], true, "{report:#}");
    }
    hosts.a.host.stop("guest");
    hosts.is_clean();
}

/// Gives the host's end of the line an address that is known on the line alone.
fn link_local(site: &Site) -> String {
    let on = || fs::write("/proc/sys/net/ipv6/conf/line0/disable_ipv6", "0");
    site.namespace.enter(on).expect("IPv6 on the line");
    // It is tentative until nobody was found to have it too.
    let settled = eventually(LONG, || {
        let listed = site.namespace.list("ip", "-6 address show dev line0");
        let listed = listed.ok()?;
        let known = listed.iter().flat_map(|line| line["addr_info"].as_array());
        known.flatten().find_map(|info| {
            let settled = info["scope"] == "link" && info["tentative"] != true;
            Some(info["local"].as_str().filter(|_| settled)?.to_owned())
        })
    });
    settled.expect("an address of the line")
}

#[test]
fn guest_goes_to_an_address_with_a_scope() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let strict = ["--sandbox", "strict"];
    let mut run = Guest::dirtying().run_args("guest");
    run.extend(strict.map(str::to_owned));
    let _ = hosts.a.host.vmm(run).success();
    let mut console = Console::of(&hosts.a.host, "guest");
    console.wait_ready();
    let address = hosts.b.host.receive_with("guest", "[::]:0", &strict);
    let port = address.rsplit_once(':').expect("port").1;
    // Whoever asks needs one too.
    let [_, link_local] = [&hosts.a, &hosts.b].map(link_local);
    let to = format!("[{link_local}%line0]:{port}");
    let _ = moves(&hosts.a, &hosts.b, &to, &mut console, &[]);
    hosts.b.host.stop("guest");
    hosts.is_clean();
}

#[test]
fn hosts_reach_each_other_by_the_line_only() {
    let Some(hosts) = TwoHosts::new() else { return };
    // A port at which nobody listens: somebody has to be there to refuse it.
    let closed = hosts.b.namespace.enter(|| TcpListener::bind("0.0.0.0:0"));
    let port = closed.and_then(|l| l.local_addr()).expect("port").port();
    let tries = |to: Ipv4Addr| {
        let connect = || TcpStream::connect_timeout(&(to, port).into(), LONG);
        let error = hosts.a.namespace.enter(connect).err();
        error.map(|error| error.kind())
    };
    assert_eq!(tries(hosts.b.address), Some(ErrorKind::ConnectionRefused));
    assert_eq!(tries(CLIENT), Some(ErrorKind::NetworkUnreachable));
    hosts.is_clean();
}

/// Sends `bytes` from host A to a reader at host B and waits for its answer of one byte.
fn round_trip(hosts: &TwoHosts, bytes: usize, via: impl Fn(&str) -> Option<Relay>) -> Duration {
    let listen = || TcpListener::bind((hosts.b.address, 0));
    let listener = hosts.b.namespace.enter(listen).expect("listener");
    let address = listener.local_addr().expect("address").to_string();
    let relay = via(&address);
    let to = relay.as_ref().map_or(address, Relay::address);
    let reader = spawn(move || {
        let (mut stream, _) = listener.accept().expect("connection");
        let mut all = vec![0; bytes];
        stream.read_exact(&mut all).expect("bytes");
        stream.write_all(&[1]).expect("answer");
    });
    let mut stream = hosts
        .a
        .namespace
        .enter(|| TcpStream::connect(to))
        .expect("stream");
    let begin = Instant::now();
    stream.write_all(&vec![7; bytes]).expect("bytes");
    stream.read_exact(&mut [0]).expect("answer");
    reader.join().expect("reader");
    begin.elapsed()
}

#[test]
fn line_is_as_narrow_and_as_long_as_asked() {
    let Some(hosts) = TwoHosts::new() else { return };
    hosts.limit(8_000_000);
    // A second's worth, less what the burst lets through at once.
    let took = round_trip(&hosts, 8_000_000, |_| None);
    assert!(took >= Duration::from_millis(900), "{took:?} for 8 MB");
    hosts.unlimit();
    let took = round_trip(&hosts, 1000, |to| {
        Some(hosts.relay(to, Link::with_delay(LATENCY)))
    });
    assert!(took >= 2 * LATENCY, "{took:?} there and back");
    // A delay is no stop-and-wait: what is under way does not keep the next from starting.
    let took = round_trip(&hosts, 16 << 20, |to| {
        Some(hosts.relay(to, Link::with_delay(LATENCY)))
    });
    let one_by_one = LATENCY * (16 << 20 >> 18);
    assert!(took < one_by_one, "{took:?} for 64 pieces");
}

#[test]
fn guest_moves_over_a_narrow_and_a_long_line() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let mut console = hosts.a.host.run("guest", &Guest::slow_to_move());
    let (mut from, mut to) = (&hosts.a, &hosts.b);
    let long = Link::with_delay(LATENCY);
    let (narrow, short) = (Some(16_000_000), Link::default());
    let cases = [
        ("narrow", narrow, None),
        ("narrow, by a relay", narrow, Some(short)),
        ("long", None, Some(long)),
        ("narrow and long", narrow, Some(long)),
    ];
    for (what, rate, link) in cases {
        println!("{what}");
        rate.inspect(|rate| hosts.limit(*rate));
        let address = to.receive("guest");
        let relay = link.map(|link| hosts.relay(&address, link));
        let via = relay.as_ref().map_or(address, Relay::address);
        let report = moves(from, to, &via, &mut console, &[]);
        let wire = report["wire_bytes"].as_u64().expect("wire_bytes");
        if let Some(relay) = &relay {
            // What the report counts is what went over the line, short of keep-alives.
            let passed = relay.passed(Toward::Destination);
            assert!(
                wire.abs_diff(passed) < 64 << 10,
                "{wire} reported, {passed} passed"
            );
        }
        if let Some(rate) = rate {
            let least = 1000 * (wire - (256 << 10)) / rate * 9 / 10;
            let total = report["total_ms"].as_f64().expect("total_ms");
            assert!(total >= least as f64, "{total} ms for {wire} bytes");
            hosts.unlimit();
        }
        std::mem::swap(&mut from, &mut to);
    }
    hosts.a.host.stop("guest");
    hosts.is_clean();
}

#[test]
fn stall_shorter_than_patience_delays_and_a_longer_one_ends_the_migration() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let mut console = hosts.a.host.run("guest", &Guest::slow_to_move());
    let stalled = |toward: &[Toward]| {
        let address = hosts.b.receive("guest");
        let relay = hosts.relay(&address, Link::with_delay(Duration::from_millis(2)));
        let options = ["--insecure", "--bandwidth", "16MiB/s"];
        let mut migration = Migration::start(&hosts.a.host, "guest", &relay.address(), &options);
        migration.wait_progress();
        toward.iter().for_each(|way| relay.stall_toward(*way));
        (relay, migration)
    };
    let both = [Toward::Destination, Toward::Source];
    for toward in [&both[..], &both[..1], &both[1..]] {
        println!("for good: {toward:?}");
        let (relay, migration) = stalled(toward);
        let ended = migration.finish();
        drop(relay);
        let why = stays(&hosts.a, &hosts.b, &mut console, &ended, Receiver::Ends);
        assert!(why.contains("precopy"), "{why}");
    }
    println!("for a moment");
    let (relay, migration) = stalled(&both);
    // Not a wait for something: the stall itself. Either side gives up after 10 s.
    sleep(Duration::from_secs(4));
    relay.go_on();
    migration.finish().completed();
    hosts.a.is_clean();
    console.moves_to(&hosts.b.host, "guest");
    console.verifies_ledger();
}

#[test]
fn guest_stays_when_the_line_breaks_before_the_commit() {
    let Some(_lock) = guest_lock() else { return };
    let Some(hosts) = TwoHosts::new() else { return };
    let mut console = hosts.a.host.run("guest", &Guest::dirtying());
    // So that something is under way when the line breaks.
    let link = Link::with_delay(Duration::from_millis(5));
    let frames = [
        (Toward::Source, kind::WELCOME, Receiver::Waits),
        (Toward::Destination, kind::NEGOTIATE, Receiver::Waits),
        (Toward::Source, kind::NEGOTIATED, Receiver::Waits),
        (Toward::Destination, kind::PREPARE, Receiver::Waits),
        (Toward::Source, kind::PREPARED, Receiver::Ends),
        (Toward::Destination, kind::EXTENTS, Receiver::Ends),
        (Toward::Destination, kind::LAST_PASS, Receiver::Ends),
        (Toward::Destination, kind::STATE, Receiver::Ends),
        (Toward::Source, kind::READY, Receiver::Ends),
    ];
    let frames = frames.iter().flat_map(|&(toward, kind, receiver)| {
        [Fate::Cut, Fate::HalfClose].map(|fate| {
            let trap = Trap { toward, kind, fate };
            let receiver = match (kind, fate) {
                // The source may have sent its commit, for all that is known there: it says nothing more.
                (kind::READY, Fate::Cut) => Receiver::Waits,
                _ => receiver,
            };
            (format!("{trap:?}"), link.and_trap(trap), receiver)
        })
    });
    // From the middle of the first frame to the middle of the memory.
    let bytes = [
        (Toward::Destination, 150, Receiver::Waits),
        (Toward::Destination, 1 << 20, Receiver::Ends),
        (Toward::Destination, 7 << 20, Receiver::Ends),
        (Toward::Source, 50, Receiver::Waits),
        (Toward::Source, 250, Receiver::Waits),
    ];
    let bytes = bytes.iter().map(|&(toward, at, receiver)| {
        let what = format!("cut after {at} bytes toward {toward:?}");
        let cut_after = Some((toward, at));
        (what, Link { cut_after, ..link }, receiver)
    });
    for (what, link, receiver) in frames.chain(bytes) {
        println!("{what}");
        let address = hosts.b.receive("guest");
        let relay = hosts.relay(&address, link);
        let options = ["--insecure", "--reconnect-for", "0s"];
        let ended = Migration::start(&hosts.a.host, "guest", &relay.address(), &options).finish();
        assert!(
            relay.is_sprung() || relay.is_cut_at_bytes(),
            "did not break: {:#}",
            ended.report
        );
        let _ = stays(&hosts.a, &hosts.b, &mut console, &ended, receiver);
    }
    console.verifies_ledger();
    println!("in the hello");
    let address = hosts.b.receive("guest");
    let cut_after = Some((Toward::Destination, 40));
    let relay = hosts.relay(&address, Link { cut_after, ..link });
    let options = ["--insecure"];
    let ended = Migration::start(&hosts.a.host, "guest", &relay.address(), &options).finish();
    let _ = ended.ended(1, "failed");
    assert!(relay.is_cut_at_bytes());
    // Nobody had asked for anything yet, so the receiver waits on, and nothing of all this is in the
    // way of the next.
    moves(&hosts.a, &hosts.b, &address, &mut console, &[]);
}

#[test]
fn guest_is_held_when_the_line_breaks_at_the_commit_until_it_can_be_asked() {
    let Some(_lock) = guest_lock() else { return };
    let breaks = [
        ("the answer is lost", Toward::Source, kind::COMMITTED, true),
        (
            "the commit is lost",
            Toward::Destination,
            kind::COMMIT,
            false,
        ),
    ];
    for (what, toward, kind, ran) in breaks {
        println!("{what}");
        let Some(hosts) = TwoHosts::new() else { return };
        let mut console = hosts.a.host.run("guest", &Guest::dirtying());
        let address = hosts.b.receive("guest");
        let fate = Fate::Cut;
        let link = Link::with_delay(Duration::from_millis(5)).and_trap(Trap { toward, kind, fate });
        let relay = hosts.relay(&address, link);
        let options = ["--insecure"];
        let ended = Migration::start(&hosts.a.host, "guest", &relay.address(), &options).finish();
        let _ = ended.ended(3, "failed");
        assert_eq!(hosts.a.host.status("guest")["state"], "handover-unknown");
        if !ran {
            hosts.b.host.waits_on("guest");
        }
        relay.go_on();
        if ran {
            hosts.a.is_clean();
            console.moves_to(&hosts.b.host, "guest");
        } else {
            hosts.a.host.wait_state("guest", "running");
        }
        console.wait_tick();
        console.verifies_ledger();
    }
}
