//! The guest's clocks and timers go on, on whatever host it runs.

use tests::Host;
use tests::blackbox::clock_ledger::{ClockLedger, Offset};
use tests::blackbox::wait::eventually;
use tests::blackbox::{Console, Guest, Migration, Pair, Vms, guest_lock};

/// What a guest's clock may be off, over all moves together.
const TOLERANCE_MS: f64 = 5.0;

#[track_caller]
fn moves(from: &Host, to: &Host, console: &mut Console) {
    let address = to.receive("guest", "127.0.0.1:0");
    Migration::start(from, "guest", &address, &[])
        .finish()
        .completed();
    console.moves_to(to, "guest");
    from.is_clean();
}

/// Newest value of a field of the guest's `clock` lines.
#[track_caller]
fn newest(console: &mut Console, key: &str) -> u64 {
    let line = console
        .lines()
        .into_iter()
        .rev()
        .find(|l| l.kind == "clock");
    line.and_then(|l| l.number(key))
        .unwrap_or_else(|| panic!("no {key} in the guest's clock lines"))
}

#[track_caller]
fn is_close(first: Offset, now: Offset, when: &str) {
    let apart = now.apart_ms(first);
    println!("{when}: {apart:+.3} ms");
    assert!(
        apart.abs() <= TOLERANCE_MS,
        "{when}: the guest's clock is {apart} ms off the host's"
    );
}

#[test]
fn clock_goes_on_by_the_real_time_over_sixteen_moves() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let guest = Guest::dirtying().cpus(2).and("clock_ms=20 tick_ms=500");
    let mut console = pair.source.run("guest", &guest);
    let ledger = ClockLedger::of(&mut console);
    let first = ledger.measure(&pair.source, "guest");
    for round in 1..=8 {
        moves(&pair.source, &pair.destination, &mut console);
        is_close(
            first,
            ledger.measure(&pair.destination, "guest"),
            &format!("there {round}"),
        );
        moves(&pair.destination, &pair.source, &mut console);
        is_close(
            first,
            ledger.measure(&pair.source, "guest"),
            &format!("back {round}"),
        );
        // No CPU saw kvmclock or the TSC go back.
        console.is_unharmed();
    }
    assert!(
        newest(&mut console, "stops") >= 16,
        "the guest was not told that it had been stopped"
    );
    console.verifies_ledger();
}

#[test]
fn clock_goes_on_while_the_user_holds_the_guest() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair
        .source
        .run("guest", &Guest::dirtying().and("clock_ms=20 tick_ms=500"));
    let ledger = ClockLedger::of(&mut console);
    let first = ledger.measure(&pair.source, "guest");
    let _ = pair.source.vmm(["pause", "guest"]).success();
    let held = std::time::Instant::now();
    // What a user does meanwhile takes its time.
    eventually("some time passes", || {
        (held.elapsed().as_millis() >= 300).then_some(())
    });
    let _ = pair.source.vmm(["resume", "guest"]).success();
    is_close(
        first,
        ledger.measure(&pair.source, "guest"),
        "after the pause",
    );
    assert!(newest(&mut console, "stops") >= 1);
    // Held at the source, moved, and let go at the destination.
    let _ = pair.source.vmm(["pause", "guest"]).success();
    moves(&pair.source, &pair.destination, &mut console);
    assert_eq!(pair.destination.status("guest")["state"], "paused");
    let _ = pair.destination.vmm(["resume", "guest"]).success();
    is_close(
        first,
        ledger.measure(&pair.destination, "guest"),
        "after pause and move",
    );
    console.verifies_ledger();
}

#[test]
fn timers_of_every_kind_go_on_firing() {
    let Some(_lock) = guest_lock() else { return };
    for (kind, spurious) in [
        ("periodic", 0),
        // KVM fires one again that had fired when its state was saved, once a move.
        ("oneshot", 6),
        ("deadline", 0),
    ] {
        println!("{kind}");
        let pair = Pair::new();
        let guest = Guest::dirtying().and(&format!("clock_ms=50 timer={kind} timer_us=200000"));
        let mut console = pair.source.run("guest", &guest);
        let (mut from, mut to) = (&pair.source, &pair.destination);
        for _ in 0..6 {
            let before = newest_when_there(&mut console);
            moves(from, to, &mut console);
            std::mem::swap(&mut from, &mut to);
            eventually("the timer fires again and again", || {
                console.is_unharmed();
                (newest(&mut console, "fired") >= before + 3).then_some(())
            });
        }
        assert!(
            newest(&mut console, "early") <= spurious,
            "{kind} fired early"
        );
        console.verifies_ledger();
    }
}

/// How often the timer has fired, once the guest has told it.
#[track_caller]
fn newest_when_there(console: &mut Console) -> u64 {
    console.wait_for("its clock", |line| line.kind == "clock");
    newest(console, "fired")
}
