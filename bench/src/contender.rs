//! Who is measured: this engine, its peers, and the limit that no copy through sockets can beat by
//! much.

use super::engine::{self, Asked, DiskCache};
use super::error::BenchError;
use super::guest::Workload;
use super::hosts::Hosts;
use super::limit;
use super::mapping::Pages;
use super::qemu::{self, Qemu, Variant};
use super::role::Role;
use super::terms::Terms;
use super::turn::Turn;

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
                let asked = Asked {
                    streams: *streams,
                    pages: *pages,
                    cache: DiskCache::Host,
                };
                engine::run(hosts, workload, terms, asked).map(Turn::Moved)
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
