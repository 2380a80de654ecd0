//! Who moves a guest with its disks.

use super::super::engine::{self, Asked, DiskCache};
use super::super::error::BenchError;
use super::super::guest::Workload;
use super::super::hosts::Hosts;
use super::super::mapping::Pages;
use super::super::qemu::{self, Found, Qemu, Variant};
use super::super::rounds::TakesTurns;
use super::super::terms::Terms;
use super::nbdcopy::NbdCopy;
use super::on_demand;
use super::plan::{DiskPlan, DiskScenario};
use super::role::MoverRole;
use super::turn::DiskTurn;

/// One contender.
pub(super) enum Mover {
    /// This engine.
    Engine(Engine),
    /// This engine, with a guest that goes before its disk does.
    First,
    /// A QEMU.
    Qemu { qemu: Qemu, variant: Variant },
    /// The plain copy, beside a guest that does as this one does.
    Copy { copy: NbdCopy, beside: Workload },
}

/// This engine with some guest.
pub(super) struct Engine {
    name: &'static str,
    role: MoverRole,
    workload: Workload,
    /// Disks of the guest.
    disks: usize,
    cache: DiskCache,
    streams: Option<u8>,
}

impl Mover {
    /// Who takes part in a scenario; `copy` is the plain copy, where it is there.
    pub fn all(
        plan: &DiskPlan,
        found: &Found,
        copy: Option<&NbdCopy>,
        streams: Option<u8>,
    ) -> Vec<Self> {
        let engine = |name, role, disks| Engine {
            name,
            role,
            workload: plan.workload,
            disks,
            cache: DiskCache::Host,
            streams,
        };
        let with = engine("vmm", MoverRole::Engine, 1);
        let without = engine("vmm, no disk", MoverRole::EngineWithoutDisks, 0);
        match plan.scenario {
            DiskScenario::Move => {
                let direct = Engine {
                    cache: DiskCache::None,
                    ..engine("vmm, cache=none", MoverRole::FurtherEngine, 1)
                };
                let bulk = Engine {
                    workload: plan.little,
                    ..engine("vmm, little memory", MoverRole::EngineForBulk, 1)
                };
                let peers = found.qemus.iter().flat_map(|qemu| {
                    Variant::WITH_DISKS.map(|variant| Self::Qemu {
                        qemu: qemu.clone(),
                        variant,
                    })
                });
                let copy = copy.map(|copy| Self::Copy {
                    copy: copy.clone(),
                    beside: plan.little,
                });
                [with, direct, without, bulk]
                    .map(Self::Engine)
                    .into_iter()
                    .chain(copy)
                    .chain(peers)
                    .collect()
            }
            DiskScenario::Downtime => {
                let more = engine(
                    "vmm, four disks",
                    MoverRole::EngineWithMoreDisks,
                    plan.disks,
                );
                [without, with, more].map(Self::Engine).into()
            }
            DiskScenario::Busy => vec![Self::Engine(with)],
            DiskScenario::OnDemand => {
                let copy = copy.map(|copy| Self::Copy {
                    copy: copy.clone(),
                    beside: plan.little,
                });
                std::iter::once(Self::First).chain(copy).collect()
            }
            // It has contenders of its own.
            DiskScenario::Local => Vec::new(),
        }
    }

    /// What it is to the comparison.
    pub fn role(&self) -> MoverRole {
        match self {
            Self::Engine(engine) => engine.role,
            Self::First => MoverRole::EngineForBulk,
            Self::Qemu { .. } => MoverRole::Peer,
            Self::Copy { .. } => MoverRole::PlainCopy,
        }
    }

    /// One timed turn.
    pub fn turn(
        &self,
        hosts: &Hosts,
        plan: &DiskPlan,
        terms: &Terms<'_>,
    ) -> Result<DiskTurn, BenchError> {
        let of_move = |moved: &_, workload: &Workload, disks: usize| {
            DiskTurn::of_move(moved, workload.data_bytes(), plan.data_bytes * disks as u64)
        };
        match self {
            Self::Engine(engine) => {
                let terms = Terms {
                    disks: &terms.disks[..engine.disks],
                    ..*terms
                };
                let asked = Asked {
                    streams: engine.streams,
                    pages: Pages::Cold,
                    cache: engine.cache,
                };
                let moved = engine::run(hosts, &engine.workload, &terms, asked)?;
                Ok(of_move(&moved, &engine.workload, engine.disks))
            }
            Self::First => on_demand::turn(hosts, plan, terms),
            Self::Qemu { qemu, variant } => {
                let moved = qemu::run(hosts, &plan.workload, terms, qemu, *variant)?;
                Ok(of_move(&moved, &plan.workload, terms.disks.len()))
            }
            Self::Copy { copy, beside } => copy.run(hosts, beside, terms, plan.data_bytes),
        }
    }
}

impl TakesTurns for Mover {
    fn name(&self) -> String {
        match self {
            Self::Engine(engine) => engine.name.to_owned(),
            Self::First => "vmm".to_owned(),
            Self::Qemu { qemu, variant } => {
                format!("QEMU {} {}, {variant}", qemu.version, variant.copy_mode)
            }
            Self::Copy { .. } => "nbdcopy, 4 connections".to_owned(),
        }
    }

    fn is_left_out_after(&self, error: &BenchError) -> bool {
        match self {
            Self::Engine(_) | Self::First => matches!(error, BenchError::NotConverged(_)),
            Self::Qemu { .. } | Self::Copy { .. } => true,
        }
    }
}
