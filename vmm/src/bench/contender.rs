//! Who is measured: this engine, its peers, and the limit that no copy through sockets can beat by
//! much.

use std::time::Duration;

use serde::Serialize;

use super::engine;
use super::error::BenchError;
use super::guest::Workload;
use super::hosts::Hosts;
use super::limit::{self, Copied};
use super::link::Link;
use super::mapping::{Pages, Warmth};
use super::moved::Move;
use super::qemu::{self, Qemu, Variant};

/// What all contenders of a scenario find alike.
pub(super) struct Terms<'a> {
    /// The way between the hosts.
    pub link: &'a Link,
    /// Longest that the guest may be stopped.
    pub downtime_limit_ms: u64,
    /// Longest that a migration may take.
    pub patience: Duration,
    /// Memory that is populated and freed right before the request.
    pub warmth: Warmth,
}

/// What a contender is to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This engine.
    Engine,
    /// This engine at a destination that had the memory ready before the time was taken.
    PreparedEngine,
    /// Another VMM.
    Peer,
    /// Another VMM that did part of its work before the time was taken.
    PreparedPeer,
    /// The plain copy into memory that is allocated as it is written.
    ColdLimit,
    /// The plain copy into memory that is there already.
    PopulatedLimit,
}

/// One contender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Contender {
    /// This engine, over so many streams; `None` is what it chooses. Populated memory is what the
    /// destination reserved beforehand.
    Engine { streams: Option<u8>, pages: Pages },
    /// A QEMU.
    Qemu { qemu: Qemu, variant: Variant },
    /// The plain copy.
    Limit { streams: u8, pages: Pages },
}

/// What one turn of a contender gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Turn {
    /// A guest was moved.
    Moved(Move),
    /// Bytes were copied.
    Copied(Copied),
}

impl Turn {
    /// The time that is compared.
    pub fn total_ms(&self) -> f64 {
        match self {
            Self::Moved(moved) => moved.total_ms,
            Self::Copied(copied) => copied.total_ms,
        }
    }

    /// The largest gap that the guest saw: the moved one, or the one beside the copy.
    pub fn guest_gap_ms(&self) -> f64 {
        match self {
            Self::Moved(moved) => moved.guest_gap_ms,
            Self::Copied(copied) => copied.guest_gap_ms,
        }
    }
}

impl Contender {
    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Engine { pages, .. } => match pages {
                Pages::Cold => "vmm".to_owned(),
                Pages::Populated => "vmm, memory reserved before".to_owned(),
            },
            Self::Qemu { qemu, variant } => format!("QEMU {} {variant}", qemu.version),
            Self::Limit { pages, .. } => match pages {
                Pages::Cold => "limit, cold memory".to_owned(),
                Pages::Populated => "limit, populated memory".to_owned(),
            },
        }
    }

    /// What it is to the comparison.
    pub fn role(&self) -> Role {
        match self {
            Self::Engine { pages, .. } => match pages {
                Pages::Cold => Role::Engine,
                Pages::Populated => Role::PreparedEngine,
            },
            Self::Qemu { variant, .. } if variant.works_beforehand() => Role::PreparedPeer,
            Self::Qemu { .. } => Role::Peer,
            Self::Limit { pages, .. } => match pages {
                Pages::Cold => Role::ColdLimit,
                Pages::Populated => Role::PopulatedLimit,
            },
        }
    }

    /// One timed turn.
    pub fn turn(
        &self,
        hosts: &Hosts,
        workload: &Workload,
        terms: &Terms<'_>,
    ) -> Result<Turn, BenchError> {
        match self {
            Self::Engine { streams, pages } => {
                engine::run(hosts, workload, terms, *streams, *pages).map(Turn::Moved)
            }
            Self::Qemu { qemu, variant } => {
                qemu::run(hosts, workload, terms, qemu, *variant).map(Turn::Moved)
            }
            Self::Limit { streams, pages } => {
                limit::run(hosts, workload, terms, *streams, *pages).map(Turn::Copied)
            }
        }
    }
}
