//! The contenders of a scenario take turns on the same images.

use control::units::human_ms;

use super::super::disks::{DiskFormat, DiskImage, ImageFolder, MovingDisk};
use super::super::error::BenchError;
use super::super::hosts::Hosts;
use super::super::qemu::Found;
use super::super::rounds::{TakesTurns, take_turns};
use super::super::terms::Terms;
use super::figures::{DiskMoveFigures, MoverFigures};
use super::local::Local;
use super::mover::Mover;
use super::nbdcopy::NbdCopy;
use super::plan::{DiskPlan, DiskScenario};
use super::turn::DiskTurn;

/// Measures `runs` rounds of a scenario, in which this engine has `streams` connections, or as many as it
/// chooses.
///
/// # Errors
/// When this engine could not be measured. A peer or plain copy that fails is left out of the further
/// rounds, and why is told.
pub(crate) fn measure(
    hosts: &Hosts,
    images: &ImageFolder,
    plan: &DiskPlan,
    found: &Found,
    runs: u32,
    streams: Option<u8>,
) -> Result<DiskMoveFigures, BenchError> {
    let link = plan.link();
    let made = (0..plan.disks)
        .map(|_| {
            let path = images.path("raw");
            DiskImage::make(path, DiskFormat::Raw, plan.disk_bytes, plan.data_bytes)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let disks: Vec<_> = made
        .iter()
        .enumerate()
        .map(|(number, image)| MovingDisk {
            id: format!("disk{number}"),
            source: image.path().to_owned(),
            destination: images.path("moved"),
            bytes: plan.disk_bytes,
            load: plan.load,
        })
        .collect();
    let terms = Terms {
        link: &link,
        downtime_limit_ms: plan.downtime_limit_ms,
        patience: plan.patience,
        warmth: plan.warmth(),
        disks: &disks,
    };
    let (movers, absent) = match plan.scenario {
        DiskScenario::Local => {
            let turn = |local: &Local| local.turn(hosts, plan, &terms);
            let records = take_turns(plan.name, vec![Local], runs, turn, |turns| tell(turns))?;
            let figures = records.into_iter().map(|record| {
                let turns: Vec<_> = record.turns.into_iter().flatten().collect();
                let (name, role) = (record.contender.name(), Local::ROLE);
                MoverFigures::new(name, role, &turns, record.gave_up)
            });
            (figures.collect(), None)
        }
        DiskScenario::Move
        | DiskScenario::Downtime
        | DiskScenario::Busy
        | DiskScenario::OnDemand => {
            let (copy, absent) = match NbdCopy::look() {
                Ok(copy) => (Some(copy), None),
                Err(why) => (None, Some(why)),
            };
            let movers = Mover::all(plan, found, copy.as_ref(), streams);
            let turn = |mover: &Mover| {
                let turn = mover.turn(hosts, plan, &terms);
                disks.iter().for_each(MovingDisk::remove_destination);
                turn
            };
            let records = take_turns(plan.name, movers, runs, turn, |turn| tell([turn]))?;
            let figures = records.into_iter().map(|record| {
                let (name, role) = (record.contender.name(), record.contender.role());
                MoverFigures::new(name, role, &record.turns, record.gave_up)
            });
            let is_compared = matches!(plan.scenario, DiskScenario::Move | DiskScenario::OnDemand);
            let absent = absent.filter(|_| is_compared);
            (figures.collect(), absent)
        }
    };
    Ok(DiskMoveFigures::new(plan, &link, movers, absent))
}

/// What turns gave, for people.
fn tell<'t>(turns: impl IntoIterator<Item = &'t DiskTurn>) -> String {
    let told = turns.into_iter().map(|turn| {
        let part = |name: &str, ms: Option<f64>| {
            ms.map_or_else(String::new, |ms| format!(", {name} {}", human_ms(ms)))
        };
        format!(
            "{}{}{}{}{}",
            human_ms(turn.total_ms),
            part("runs after", turn.runs_ms),
            part("gap", turn.guest_gap_ms),
            part("I/O pause", turn.io_pause_ms),
            part("p99 of writes", turn.beside.write_p99_ms)
        )
    });
    told.collect::<Vec<_>>().join("; ")
}
