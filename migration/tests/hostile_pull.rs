//! Peers of a pull that break its rules: they lose their connection by name, and nothing else is changed.

#[allow(dead_code, reason = "each test binary uses its part")]
mod pulled;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use migration::pull::client::Options;
use migration::pull::{Class, PullError};
use migration::transport::memory::{MemoryListen, network};
use migration::transport::{Connect, Connection, Listen, Patience};
use migration::wire::hello::{HELLO_LEN, Hello, Role};
use migration::wire::pull::{
    End, Frame, Gone, MAX_ASKED, PULL_LEN, PullHeader, PulledVolume, Units, VolumeList,
};
use zerocopy::IntoBytes;

use pulled::{
    CLIENT, Here, ID, SECRET, SERVER, Store, UNIT, UNITS, client, content, fetch, fetch_all,
    server, units, volume, wait_until,
};

/// A frame with its payload.
type Said = (Frame, Vec<u8>);

fn send(connection: &dyn Connection, frame: Frame, payload: &[u8]) {
    let header = PullHeader::new(&frame, payload);
    // The other end may have ended it already.
    let _ = connection.send(&[header.as_bytes(), payload].concat());
}

fn receive(connection: &dyn Connection, from: End) -> Option<Said> {
    let mut header = [0; PULL_LEN];
    connection.receive(&mut header).ok()?;
    let header: PullHeader = zerocopy::transmute!(header);
    let frame = header.frame(from).unwrap();
    let mut payload = vec![0; frame.payload()];
    connection.receive(&mut payload).ok()?;
    Some((frame, payload))
}

/// What a server does wrong, when it is asked for unit 1.
type Wrong = fn(&dyn Connection, u32, Units);

/// Takes one connection in, is a server until it is asked, and then does something wrong.
fn serve_wrongly(listen: &MemoryListen, volume: PulledVolume, wrong: Wrong) {
    let connection = listen.accept(Duration::from_secs(20)).unwrap().unwrap();
    let mut hello = [0; HELLO_LEN];
    connection.receive(&mut hello).unwrap();
    assert_eq!(Hello::decode(&hello).unwrap().role, Role::Pull { lane: 0 });
    let list = VolumeList {
        volumes: vec![volume],
    };
    let list = list.encode().unwrap();
    let len = list.len() as u32;
    send(&*connection, Frame::Volumes { len }, &list);
    while let Some((frame, _)) = receive(&*connection, End::Client) {
        match frame {
            Frame::Request { number, units, .. } => wrong(&*connection, number, units),
            Frame::Ping { number } => send(&*connection, Frame::Pong { number }, &[]),
            _ => {}
        }
    }
}

fn answer(connection: &dyn Connection, number: u32, units: Units, bytes: &[u8]) {
    let frame = Frame::Answer {
        number,
        units,
        zeroes: 0,
        len: bytes.len() as u32,
    };
    send(connection, frame, bytes);
}

const BAD: [u8; UNIT as usize] = [0xbd; UNIT as usize];

#[test]
fn a_server_that_answers_wrongly_changes_nothing_and_is_left_by_name() {
    let cases: &[(&str, &str, Wrong)] = &[
        ("another unit", "other units", |to, number, units| {
            let first = units.first + 1;
            answer(to, number, Units { first, ..units }, &BAD);
        }),
        ("more units", "other units", |to, number, units| {
            answer(
                to,
                number,
                Units { count: 2, ..units },
                &[BAD, BAD].concat(),
            );
        }),
        ("outside of the disk", "other units", |to, number, units| {
            let first = UNITS + 5;
            answer(to, number, Units { first, ..units }, &BAD);
        }),
        ("another volume", "other units", |to, number, units| {
            answer(to, number, Units { volume: 1, ..units }, &BAD);
        }),
        (
            "a number that nobody has",
            "nobody has asked",
            |to, number, units| {
                answer(to, number.wrapping_add(7), units, &BAD);
            },
        ),
        (
            "too little",
            "not what was asked for",
            |to, number, units| {
                answer(to, number, units, &BAD[..512]);
            },
        ),
        (
            "units and zeroes",
            "not what was asked for",
            |to, number, units| {
                let (zeroes, len) = (1, UNIT);
                let frame = Frame::Answer {
                    number,
                    units,
                    zeroes,
                    len,
                };
                send(to, frame, &BAD);
            },
        ),
        (
            "zeroes of no unit",
            "exceeds the limits",
            |to, number, units| {
                let (zeroes, len) = (2, UNIT);
                let frame = Frame::Answer {
                    number,
                    units,
                    zeroes,
                    len,
                };
                send(to, frame, &BAD);
            },
        ),
        ("damage", "damaged", |to, number, units| {
            let frame = Frame::Answer {
                number,
                units,
                zeroes: 0,
                len: UNIT,
            };
            let header = PullHeader::new(&frame, &BAD);
            let _ = to.send(&[header.as_bytes(), &[0; UNIT as usize]].concat());
        }),
        ("a map", "not what was asked for", |to, number, units| {
            send(to, Frame::Data { number, units }, &[1]);
        }),
        (
            "what it has",
            "not what was asked for",
            |to, number, units| {
                send(to, Frame::Held { number, units }, &[1]);
            },
        ),
        ("a release", "released that is needed", |to, _, _| {
            send(to, Frame::Released { volume: 0 }, &[]);
        }),
        ("a pong", "ping was answered that was none", |to, _, _| {
            send(to, Frame::Pong { number: 99 }, &[]);
        }),
        ("a question", "wrong side", |to, _, _| {
            send(to, Frame::Ping { number: 1 }, &[]);
        }),
        ("garbage", "carries no pull", |to, _, _| {
            let _ = to.send(&[0x5a; 4096]);
        }),
        (
            "gone, of nobody's number",
            "nobody has asked",
            |to, number, _| {
                let number = number.wrapping_add(1);
                let why = Gone::Released;
                send(to, Frame::Gone { number, why }, &[]);
            },
        ),
        ("never", "no answer within", |_, _, _| {}),
    ];
    for (what, named, wrong) in cases {
        let (connect, listen) = network(&[]);
        let here = Arc::<Here>::default();
        let options = Options {
            answer: Duration::from_millis(300),
            ..CLIENT
        };
        let client = client(connect, &here, options);
        let (listen, wrong) = (&listen, *wrong);
        // Goes with a failure, so that the server ends.
        let client = thread::scope(move |scope| {
            scope.spawn(move || serve_wrongly(listen, volume(), wrong));
            wait_until("there is no link", || client.lost().is_none());
            let mut bytes = vec![0x55; UNIT as usize];
            let fetched = client.fetch(units(1, 1), Class::Demand, &mut bytes);
            assert_eq!(fetched, Err(PullError::Lost), "{what}");
            assert!(bytes.iter().all(|byte| *byte == 0x55), "{what}");
            wait_until(what, || {
                let why = client.lost().and_then(|lost| lost.why);
                why.is_some_and(|why| why.contains(named))
            });
            client
        });
        // A server that keeps to the rules is asked then.
        let store = Arc::<Store>::default();
        let good = server(&store, SERVER);
        thread::scope(|scope| {
            scope.spawn(|| good.serve(listen).unwrap());
            fetch_all(&client, &here);
            good.stop();
        });
    }
}

#[test]
fn an_answer_that_comes_twice_is_written_once() {
    let (connect, listen) = network(&[]);
    let (client, listen) = (client(connect, &Arc::default(), CLIENT), &listen);
    thread::scope(move |scope| {
        scope.spawn(move || {
            serve_wrongly(listen, volume(), |to, number, units| {
                answer(to, number, units, &content(1));
                answer(to, number, units, &BAD);
            });
        });
        wait_until("there is no link", || client.lost().is_none());
        assert_eq!(fetch(&client, 1, Class::Demand), Ok(content(1)));
        wait_until("the second one is not noticed", || {
            let why = client.lost().and_then(|lost| lost.why);
            why.is_some_and(|why| why.contains("nobody has asked or was answered"))
        });
        drop(client);
    });
}

#[test]
fn a_server_of_another_disk_is_asked_for_nothing() {
    for other in [
        PulledVolume {
            size: volume().size - 512,
            ..volume()
        },
        PulledVolume {
            unit: 2 * UNIT,
            ..volume()
        },
        PulledVolume {
            id: "root".into(),
            ..volume()
        },
    ] {
        let (connect, listen) = network(&[]);
        let (client, listen) = (client(connect, &Arc::default(), CLIENT), &listen);
        thread::scope(move |scope| {
            scope.spawn(move || serve_wrongly(listen, other, |_, _, _| panic!("it was asked")));
            wait_until("it is not noticed", || {
                let why = client.lost().and_then(|lost| lost.why);
                why.is_some_and(|why| why.contains("not those that were agreed on"))
            });
            drop(client);
        });
    }
}

/// Connects as a client that is known, and reads what is served.
fn known(connect: &dyn Connect) -> Box<dyn Connection> {
    let patience = Patience {
        timeout: Duration::from_secs(5),
        give_up: &|| false,
    };
    let connection = connect.connect(patience).unwrap();
    let hello = Hello::new(Role::Pull { lane: 0 }, ID, SECRET.0);
    connection.send(&hello.encode()).unwrap();
    let (frame, _) = receive(&*connection, End::Server).unwrap();
    assert!(matches!(frame, Frame::Volumes { .. }));
    connection
}

#[test]
fn a_client_that_breaks_the_rules_loses_its_connection_alone() {
    let request = |number, first, count, volume| Frame::Request {
        number,
        units: Units {
            volume,
            first,
            count,
        },
        class: Class::Background,
    };
    let map = |first, count| {
        Frame::Present(Units {
            volume: 0,
            first,
            count,
        })
    };
    let cases: &[(&str, Vec<Said>)] = &[
        ("outside", vec![(request(1, UNITS, 1, 0), vec![])]),
        ("over the end", vec![(request(1, UNITS - 1, 2, 0), vec![])]),
        (
            "far outside",
            vec![(request(1, u64::MAX - 1, 1, 0), vec![])],
        ),
        ("nothing", vec![(request(1, 0, 0, 0), vec![])]),
        ("too much", vec![(request(1, 0, 33, 0), vec![])]),
        ("no volume", vec![(request(1, 0, 1, 1), vec![])]),
        ("a map of others", vec![(map(UNITS, 1), vec![1])]),
        ("bits of none", vec![(map(0, 13), vec![0xff, 0xff])]),
        (
            "a release of none",
            vec![(Frame::Finished { volume: 9 }, vec![])],
        ),
        ("a server's word", vec![(Frame::Pong { number: 1 }, vec![])]),
        (
            "more than may wait",
            (0..2 * MAX_ASKED as u32 + 2)
                .map(|number| (request(number, 0, 13, 0), vec![]))
                .collect(),
        ),
    ];
    let (connect, listen) = network(&[]);
    let store = Arc::<Store>::default();
    store.slow.store(true, Ordering::SeqCst);
    let server = server(&store, SERVER);
    thread::scope(|scope| {
        scope.spawn(|| server.serve(&listen).unwrap());
        for (what, frames) in cases {
            let (good, bad) = (known(&connect), known(&connect));
            for (frame, payload) in frames {
                send(&*bad, *frame, payload);
            }
            while receive(&*bad, End::Server).is_some() {}
            send(&*good, Frame::Ping { number: 5 }, &[]);
            let said = receive(&*good, End::Server);
            assert_eq!(said, Some((Frame::Pong { number: 5 }, vec![])), "{what}");
        }
        let released = server.status()[0].is_released;
        server.stop();
        assert!(!released);
    });
}
