//! A side is killed, or the link is cut, while the guest's disk travels.

use super::{Fault, peer};
use crate::matrix::scene::SetUp;

/// Faults of peers, and what they are called where the disk travels.
const NAMES: [(&str, &str); 3] = [
    ("kill -9 source", "kill -9 source, disk travels"),
    ("kill -9 destination", "kill -9 destination, disk travels"),
    ("link cut", "link cut, disk travels"),
];

/// The same faults, of which the same must come.
pub fn all() -> Vec<Fault> {
    let peers = peer::all().into_iter();
    let travel = peers.filter_map(|fault| {
        let (_, name) = NAMES.iter().find(|(of, _)| *of == fault.name)?;
        Some(Fault {
            name,
            set_up: |pair, _| SetUp {
                travels_to: Some(pair.destination.path().join("travelled.raw")),
                ..SetUp::default()
            },
            ..fault
        })
    });
    travel.collect()
}
