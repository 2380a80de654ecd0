//! A made-up volume and its server, for tests of the pull.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use migration::observation::{Observation, Side};
use migration::pull::client::Options as ClientOptions;
use migration::pull::server::Options as ServerOptions;
use migration::pull::{
    Class, Presence, PullClient, PullError, PullServer, PullSource, PulledVolume, Units,
};
use migration::transport::Connect;
use migration::vm::VmResult;
use migration::{MigrationId, PullSecret};

pub const ID: MigrationId = MigrationId([3; 16]);
pub const SECRET: PullSecret = PullSecret([7; 16]);
pub const UNIT: u32 = 4096;
/// The last unit is short.
pub const SIZE: u64 = 12 * UNIT as u64 + 1024;
pub const UNITS: u64 = 13;

/// Server and client give up soon on a peer that says nothing.
pub const SERVER: ServerOptions = ServerOptions {
    rate: None,
    still: Duration::from_millis(400),
    silence: Duration::from_millis(800),
    hello: Duration::from_millis(400),
    linger: Duration::from_millis(100),
};
pub const CLIENT: ClientOptions = ClientOptions {
    lanes: 1,
    still: Duration::from_millis(400),
    silence: Duration::from_millis(400),
    answer: Duration::from_secs(30),
};

/// What `unit` holds: every fourth one reads as zeroes, half of these as data.
pub fn content(unit: u64) -> Vec<u8> {
    let len = (SIZE - unit * u64::from(UNIT)).min(UNIT.into()) as usize;
    let mut bytes = vec![0; len];
    if unit % 4 != 3 {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (at as u64 * 31 + unit * 7 + 1) as u8;
        }
    }
    bytes
}

pub fn volume() -> PulledVolume {
    PulledVolume {
        id: "data".into(),
        size: SIZE,
        unit: UNIT,
    }
}

#[derive(Default)]
pub struct Store {
    /// How often each unit was read.
    pub reads: Mutex<BTreeMap<u64, u32>>,
    /// Reads of one unit at the same time.
    reading: Mutex<BTreeMap<u64, u32>>,
    pub most_at_once: AtomicU64,
    pub slow: AtomicBool,
    pub fails: AtomicBool,
    pub cannot_record: AtomicBool,
    pub released: AtomicBool,
    /// Units that are elsewhere.
    pub lacks: Mutex<Vec<u64>>,
}

pub fn refused(what: &str) -> Observation {
    Observation::new(Side::Source, "test.refused", what.to_owned())
}

impl PullSource for Store {
    fn volume(&self) -> PulledVolume {
        volume()
    }

    fn holds(&self, unit: u64) -> bool {
        !self.lacks.lock().unwrap().contains(&unit)
    }

    fn data(&self, range: Range<u64>) -> VmResult<Vec<Range<u64>>> {
        let unit = u64::from(UNIT);
        let units = range.start / unit..range.end.div_ceil(unit);
        let holds = units.filter(|unit| unit % 8 != 7);
        Ok(holds
            .map(|at| at * unit..((at + 1) * unit).min(SIZE))
            .collect())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> VmResult<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(refused("no storage"));
        }
        let unit = offset / u64::from(UNIT);
        *self.reads.lock().unwrap().entry(unit).or_default() += 1;
        let at_once = {
            let mut reading = self.reading.lock().unwrap();
            let now = reading.entry(unit).or_default();
            *now += 1;
            *now
        };
        self.most_at_once
            .fetch_max(at_once.into(), Ordering::SeqCst);
        if self.slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(30));
        }
        into.copy_from_slice(&content(unit));
        *self.reading.lock().unwrap().get_mut(&unit).unwrap() -= 1;
        Ok(())
    }

    fn release(&self) -> VmResult<()> {
        if self.cannot_record.load(Ordering::SeqCst) {
            return Err(refused("no space"));
        }
        self.released.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

pub fn server(store: &Arc<Store>, options: ServerOptions) -> PullServer {
    PullServer::new(vec![store.clone()], ID, SECRET, options)
}

/// What the client has.
#[derive(Default)]
pub struct Here(pub Mutex<BTreeMap<u64, Vec<u8>>>);

impl Presence for Here {
    fn is_present(&self, volume: usize, unit: u64) -> bool {
        assert_eq!(volume, 0);
        self.0.lock().unwrap().contains_key(&unit)
    }
}

pub fn client(
    connect: impl Connect + 'static,
    here: &Arc<Here>,
    options: ClientOptions,
) -> PullClient {
    let secret = (ID, SECRET);
    PullClient::start(
        Box::new(connect),
        secret,
        vec![volume()],
        here.clone(),
        options,
    )
    .unwrap()
}

pub fn units(first: u64, count: u32) -> Units {
    Units {
        volume: 0,
        first,
        count,
    }
}

pub fn fetch(client: &PullClient, unit: u64, class: Class) -> Result<Vec<u8>, PullError> {
    let mut bytes = vec![0x55; content(unit).len()];
    client
        .fetch(units(unit, 1), class, &mut bytes)
        .map(|()| bytes)
}

/// Fetches what is not here, again for as long as the link is lost.
pub fn fetch_all(client: &PullClient, here: &Here) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for unit in 0..UNITS {
        if here.is_present(0, unit) {
            continue;
        }
        let class = [Class::Demand, Class::Background][unit as usize % 2];
        let bytes = loop {
            match fetch(client, unit, class) {
                Ok(bytes) => break bytes,
                Err(PullError::Lost) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("unit {unit}: {error}, {:?}", client.lost()),
            }
        };
        here.0.lock().unwrap().insert(unit, bytes);
    }
    for (unit, bytes) in &*here.0.lock().unwrap() {
        assert!(*bytes == content(*unit), "unit {unit}");
    }
}

/// Waits until `is_so`.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
