//! Units that have not come are pulled, whatever becomes of the links and of the server.

mod pulled;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use migration::observation::Side;
use migration::pull::{Class, PullError, PullServer, Served};
use migration::transport::memory::{Fault, Injection, MemoryConnect, MemoryListen, network};
use migration::transport::{Connect, Connection, Patience};

use pulled::{
    CLIENT, Here, SERVER, SIZE, Store, UNIT, UNITS, client, content, fetch, fetch_all, server,
    units, wait_until,
};

/// The connecting end, which a client keeps and a test looks at.
struct Shared(Arc<MemoryConnect>);

impl Connect for Shared {
    fn connect(&self, patience: Patience<'_>) -> std::io::Result<Box<dyn Connection>> {
        self.0.connect(patience)
    }

    fn address(&self) -> String {
        self.0.address()
    }
}

fn with_server<T>(
    server: &PullServer,
    listen: &MemoryListen,
    test: impl FnOnce() -> T,
) -> (T, Served) {
    struct StopOnDrop<'a>(&'a PullServer);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.stop();
            }
        }
    }
    thread::scope(|scope| {
        let served = scope.spawn(|| server.serve(listen).unwrap());
        let _stop = StopOnDrop(server);
        let result = test();
        (result, served.join().unwrap())
    })
}

#[test]
fn every_unit_comes_as_it_is_and_the_volume_is_released() {
    for lanes in [1, 3] {
        let (connect, listen) = network(&[]);
        let store = Arc::<Store>::default();
        let server = server(&store, SERVER);
        let here = Arc::<Here>::default();
        let options = migration::pull::client::Options { lanes, ..CLIENT };
        let client = client(connect, &here, options);
        let ((), served) = with_server(&server, &listen, || {
            fetch_all(&client, &here);
            // All at once, with the short end.
            let mut all = vec![0x55; SIZE as usize];
            let whole = units(0, UNITS as u32);
            client.fetch(whole, Class::Background, &mut all).unwrap();
            let expected: Vec<u8> = (0..UNITS).flat_map(content).collect();
            assert!(all == expected);
            // Units 3 and 11 are read to be seen that they are zeroes, 7 is known to be.
            assert_eq!(client.data(whole).unwrap(), [0x7f, 0x1f]);
            assert_eq!(store.reads.lock().unwrap().get(&7), None);
            assert_eq!(server.status()[0].missing, 0);
            assert!(!store.released.load(Ordering::SeqCst));
            client.finish(0, Duration::from_secs(10)).unwrap();
            assert_eq!(fetch(&client, 1, Class::Demand), Err(PullError::Released));
        });
        assert_eq!(served, Served::Released);
        assert!(store.released.load(Ordering::SeqCst));
    }
}

#[test]
fn a_server_that_has_a_part_says_which_and_gives_nothing_else() {
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    store.lacks.lock().unwrap().extend([0, 4, 12]);
    let server = server(&store, SERVER);
    assert_eq!(
        server.status()[0].missing,
        SIZE - 2 * u64::from(UNIT) - 1024
    );
    let here = Arc::<Here>::default();
    let client = client(connect, &here, CLIENT);
    let ((), served) = with_server(&server, &listen, || {
        wait_until("it answers", || {
            client.held(units(0, UNITS as u32)) == Ok(vec![0xee, 0x0f])
        });
        assert_eq!(client.held(units(11, 2)), Ok(vec![0b01]));
        // Whoever asks for what it lacks has not asked it what it has.
        for unit in [0, 4, 12] {
            let asked = fetch(&client, unit, Class::Demand);
            assert_eq!(asked, Err(PullError::Lost), "{unit}");
            wait_until("it comes again", || client.is_up());
        }
        for unit in (0..UNITS).filter(|unit| ![0, 4, 12].contains(unit)) {
            let bytes = fetch(&client, unit, Class::Demand).unwrap();
            assert_eq!(bytes, content(unit));
        }
        assert_eq!(server.status()[0].missing, 0);
        client.finish(0, Duration::from_secs(10)).unwrap();
    });
    assert_eq!(served, Served::Released);
    let reads = store.reads.lock().unwrap();
    assert!([0, 4, 12].iter().all(|unit| !reads.contains_key(unit)));
}

#[test]
fn what_is_outside_of_the_volume_is_not_asked_for() {
    let (connect, _listen) = network(&[]);
    let client = client(connect, &Arc::default(), CLIENT);
    for (first, count, len) in [
        (UNITS, 1, UNIT),
        (UNITS - 1, 2, UNIT + 1024),
        (0, 0, 0),
        (0, 1, UNIT - 1),
        (0, 33, 33 * UNIT),
        (u64::MAX, 2, UNIT),
    ] {
        let mut bytes = vec![0; len as usize];
        let fetched = client.fetch(units(first, count), Class::Demand, &mut bytes);
        assert_eq!(fetched, Err(PullError::Range), "{first}, {count}");
    }
}

/// One pull with a fault; how many frames each side sent.
fn pull_with(injections: &[Injection]) -> [u64; 2] {
    let (connect, listen) = network(injections);
    let connect = Arc::new(connect);
    let store = Arc::<Store>::default();
    let server = server(&store, SERVER);
    let here = Arc::<Here>::default();
    let client = client(Shared(connect.clone()), &here, CLIENT);
    let ((), served) = with_server(&server, &listen, || {
        fetch_all(&client, &here);
        wait_until("the release is not recorded", || {
            let finished = client.finish(0, Duration::from_secs(5));
            finished.is_ok() || server.status()[0].is_released
        });
    });
    assert_eq!(served, Served::Released, "{injections:?}");
    let again = 1 + injections.len() as u32;
    for (unit, reads) in &*store.reads.lock().unwrap() {
        assert!(*reads <= again, "unit {unit} was read {reads} times");
    }
    assert_eq!(connect.struck(), injections.len() as u64, "{injections:?}");
    [Side::Source, Side::Destination].map(|side| connect.frames(side))
}

#[test]
fn a_fault_at_any_frame_is_survived() {
    let frames = pull_with(&[]);
    // Hello, map, requests, the end; the list, answers, the release.
    assert!(
        frames[0] >= UNITS + 3 && frames[1] >= UNITS + 2,
        "{frames:?}"
    );
    let faults = [
        Fault::Cut,
        Fault::Corrupt,
        Fault::Truncate,
        Fault::Stall,
        Fault::Delay(Duration::from_millis(20)),
    ];
    // Most of a pull with a fault is waiting for a time to pass.
    thread::scope(|scope| {
        for (side, least) in [(Side::Source, UNITS + 3), (Side::Destination, UNITS + 2)] {
            for fault in faults {
                scope.spawn(move || {
                    for frame in 0..least {
                        pull_with(&[Injection { side, frame, fault }]);
                    }
                });
            }
        }
    });
}

#[test]
fn a_server_that_was_started_again_is_asked_for_the_rest() {
    let (connect, listen) = network(&[]);
    let connect = Arc::new(connect);
    let store = Arc::<Store>::default();
    let here = Arc::<Here>::default();
    let client = client(Shared(connect), &here, CLIENT);
    let returned = Arc::<AtomicU64>::default();
    client.tell_return({
        let returned = returned.clone();
        Arc::new(move || {
            returned.fetch_add(1, Ordering::SeqCst);
        })
    });
    let first = server(&store, SERVER);
    let ((), served) = with_server(&first, &listen, || {
        for unit in 0..5 {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            let bytes = loop {
                match fetch(&client, unit, Class::Demand) {
                    Ok(bytes) => break bytes,
                    Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
                }
            };
            here.0.lock().unwrap().insert(unit, bytes);
        }
        first.stop();
    });
    assert_eq!(served, Served::Stopped);
    wait_until("the loss is not told", || client.lost().is_some());
    assert_eq!(fetch(&client, 5, Class::Demand), Err(PullError::Lost));
    let before = returned.load(Ordering::SeqCst);
    let second = server(&store, SERVER);
    let ((), served) = with_server(&second, &listen, || {
        wait_until("the link is not made again", || client.lost().is_none());
        // All that came before is told on the new link.
        let missing = SIZE - 5 * u64::from(UNIT);
        wait_until("the map is not told", || {
            second.status()[0].missing == missing
        });
        fetch_all(&client, &here);
        client.finish(0, Duration::from_secs(10)).unwrap();
    });
    assert_eq!(served, Served::Released);
    assert!(returned.load(Ordering::SeqCst) > before);
    assert!(
        store
            .reads
            .lock()
            .unwrap()
            .values()
            .all(|reads| *reads == 1)
    );
}

#[test]
fn a_volume_whose_release_is_not_recorded_is_not_released() {
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    store.cannot_record.store(true, Ordering::SeqCst);
    let server = server(&store, SERVER);
    let here = Arc::<Here>::default();
    let client = client(connect, &here, CLIENT);
    let ((), served) = with_server(&server, &listen, || {
        fetch_all(&client, &here);
        let told = client.finish(0, Duration::from_millis(300));
        assert_eq!(told, Err(PullError::Lost));
        assert!(!server.status()[0].is_released);
        store.cannot_record.store(false, Ordering::SeqCst);
        // It is told on the next link, without being asked to.
        wait_until("it is not told again", || server.status()[0].is_released);
        client.finish(0, Duration::from_secs(10)).unwrap();
    });
    assert_eq!(served, Served::Released);
}

#[test]
fn what_cannot_be_read_is_told_and_can_be_asked_for_again() {
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    let server = server(&store, SERVER);
    let here = Arc::<Here>::default();
    let client = client(connect, &here, CLIENT);
    with_server(&server, &listen, || {
        fetch_all(&client, &here);
        store.fails.store(true, Ordering::SeqCst);
        let mut bytes = [0x55; UNIT as usize];
        let fetched = client.fetch(units(1, 1), Class::Demand, &mut bytes);
        assert_eq!(fetched, Err(PullError::Unreadable));
        assert!(
            bytes.iter().all(|byte| *byte == 0x55),
            "nothing was changed"
        );
        store.fails.store(false, Ordering::SeqCst);
        assert_eq!(fetch(&client, 1, Class::Demand).unwrap(), content(1));
        server.stop();
    });
}

#[test]
fn a_unit_is_asked_for_once_at_a_time() {
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    store.slow.store(true, Ordering::SeqCst);
    let server = server(&store, SERVER);
    let options = migration::pull::client::Options { lanes: 3, ..CLIENT };
    let client = client(connect, &Arc::default(), options);
    with_server(&server, &listen, || {
        wait_until("there is no link", || {
            fetch(&client, 0, Class::Demand).is_ok() && fetch(&client, 0, Class::Background).is_ok()
        });
        store.most_at_once.store(0, Ordering::SeqCst);
        thread::scope(|scope| {
            for number in 0..6 {
                let client = &client;
                let class = [Class::Demand, Class::Background][number % 2];
                scope.spawn(move || {
                    let mut bytes = vec![0; 2 * UNIT as usize];
                    let both = units(number as u64 % 2, 2);
                    client.fetch(both, class, &mut bytes).unwrap();
                });
            }
        });
        server.stop();
    });
    assert_eq!(store.most_at_once.load(Ordering::SeqCst), 1);
}

#[test]
fn demand_is_answered_while_the_background_waits_for_its_rate() {
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    // The background would take an hour.
    let options = migration::pull::server::Options {
        rate: Some(SIZE / 3600),
        ..SERVER
    };
    let server = server(&store, options);
    let client = client(connect, &Arc::default(), CLIENT);
    with_server(&server, &listen, || {
        wait_until("there is no link", || client.lost().is_none());
        thread::scope(|scope| {
            let background = scope.spawn(|| {
                let fetched = (0..3).map(|unit| fetch(&client, unit, Class::Background));
                fetched.collect::<Vec<_>>()
            });
            wait_until("nobody asks", || !store.reads.lock().unwrap().is_empty());
            for unit in 4..7 {
                assert_eq!(fetch(&client, unit, Class::Demand).unwrap(), content(unit));
            }
            assert!(!background.is_finished());
            server.stop();
            let lost = Err(PullError::Lost);
            assert!(background.join().unwrap().contains(&lost));
        });
    });
}
