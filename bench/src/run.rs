//! One benchmark from its options to its summary: who takes part, in what order all is measured, and
//! what is printed when.

use std::io::Write;

use super::contender::Contender;
use super::disk_iops::DiskIopsFigures;
use super::disk_moves::plan;
use super::disk_tracking::TrackingFigures;
use super::disks::ImageFolder;
use super::error::BenchError;
use super::hosts::Hosts;
use super::mapping::Pages;
use super::options::{BenchOptions, Format};
use super::qemu::{Found, Variant};
use super::scenario::{Plan, Scenario};
use super::start::{self, StartFigures};
use super::summary::Summary;
use super::{disk_iops, disk_moves, disk_tracking, goals, interrupt, moves, page, proc};

/// Measures and prints to `out`. Progress goes to the standard error. All that it started is ended
/// when it returns, also after an error or Ctrl-C, which it notices from then on for the life of
/// this process; and when the calling thread ends without returning.
///
/// # Errors
/// When something could not be measured; never because of a figure.
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<Summary, BenchError> {
    options.check()?;
    let wanted = needed_memory(options);
    let available = proc::available_memory()?;
    if wanted > available {
        return Err(BenchError::Memory { wanted, available });
    }
    for scenario in &options.scenarios {
        if let Some(bytes) = needed_space(*scenario, options) {
            ImageFolder::new(options.images.as_deref(), bytes)?;
        }
    }
    if let Some(page) = &options.page {
        page::check(page)?;
    }
    let own = std::env::current_exe().map_err(BenchError::Program)?;
    let beside = || own.with_file_name("vmm");
    let program = options.program.clone().unwrap_or_else(beside);
    interrupt::watch()?;
    let found = match &options.qemu {
        Some(named) => Found::look(named, &own)?,
        None => Found::default(),
    };
    let hosts = Hosts::new(program)?;
    let images = |scenario| {
        let bytes = needed_space(scenario, options).unwrap_or(0);
        ImageFolder::new(options.images.as_deref(), bytes)
    };
    let mut summary = Summary::new(options);
    summary.peers = found.qemus.iter().map(ToString::to_string).collect();
    summary.absent.clone_from(&found.absent);
    let mut print = |format, text: &str| {
        if options.format == format {
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(BenchError::Write)?;
        }
        Ok::<_, BenchError>(())
    };
    print(Format::Table, &summary.heading())?;
    for scenario in &options.scenarios {
        let section = match (scenario.plan(options.memory_bytes), scenario) {
            (Some(plan), _) => {
                let contenders = contenders(options, &plan, &found);
                let figures = moves::measure(&hosts, &plan, contenders, options.runs)?;
                summary.goals.extend(goals::of(&figures));
                let section = summary.section(&figures);
                summary.scenarios.push(figures);
                section
            }
            (None, Scenario::DiskIops) => {
                let images = images(*scenario)?;
                let rounds = (options.runs, options.interval_ms);
                summary.disk_iops = disk_iops::measure(&hosts, &images, &found, rounds)?;
                let goals = summary.disk_iops.iter().flat_map(DiskIopsFigures::goals);
                summary.goals.extend(goals);
                summary.disks_section()
            }
            (None, Scenario::DiskTracking) => {
                summary.disk_tracking = disk_tracking::measure(&images(*scenario)?)?;
                let goals = summary
                    .disk_tracking
                    .iter()
                    .flat_map(TrackingFigures::goals);
                summary.goals.extend(goals);
                summary.tracking_section()
            }
            (None, Scenario::DiskMoves(which)) => {
                let (images, plan) = (images(*scenario)?, plan(*which, options.memory_bytes));
                let (runs, streams) = (options.runs, options.streams);
                let figures = disk_moves::measure(&hosts, &images, &plan, &found, runs, streams)?;
                summary.goals.extend(figures.goals());
                let section = summary.disk_moves_section(&figures);
                summary.disk_moves.push(figures);
                section
            }
            (None, _) => {
                summary.start = start::measure(&hosts)?;
                let goals = summary.start.iter().flat_map(StartFigures::goals);
                summary.goals.extend(goals);
                summary.start_section()
            }
        };
        print(Format::Table, &format!("\n{section}"))?;
    }
    print(Format::Table, &format!("\n{}", summary.goals_section()))?;
    let json = serde_json::to_string(&summary).map_err(|e| BenchError::Write(e.into()))?;
    print(Format::Json, &format!("{json}\n"))?;
    if let Some(page) = &options.page {
        page::write(page, &summary)?;
    }
    Ok(summary)
}

/// Memory that the run needs at once.
fn needed_memory(options: &BenchOptions) -> u64 {
    let needed = options.scenarios.iter().map(|scenario| {
        match (scenario.plan(options.memory_bytes), scenario) {
            (Some(plan), _) => plan.needed_memory(),
            (None, Scenario::DiskIops) => disk_iops::needed_memory(),
            (None, Scenario::DiskTracking) => disk_tracking::needed_memory(),
            (None, Scenario::DiskMoves(which)) => {
                plan(*which, options.memory_bytes).needed_memory()
            }
            (None, _) => start::needed_memory(),
        }
    });
    needed.max().unwrap_or(0)
}

/// Space that the images of a scenario need at once; `None` where there are none.
fn needed_space(scenario: Scenario, options: &BenchOptions) -> Option<u64> {
    match scenario {
        Scenario::DiskIops => Some(disk_iops::NEEDED_SPACE),
        Scenario::DiskTracking => Some(disk_tracking::NEEDED_SPACE),
        Scenario::DiskMoves(which) => Some(plan(which, options.memory_bytes).needed_space()),
        _ => None,
    }
}

/// Who takes part in a scenario.
fn contenders(options: &BenchOptions, plan: &Plan, found: &Found) -> Vec<Contender> {
    let engine = |pages| Contender::Engine {
        streams: options.streams,
        pages,
    };
    let mut contenders = vec![engine(Pages::Cold)];
    if !plan.compared {
        return contenders;
    }
    if plan.further_variants {
        contenders.push(engine(Pages::Populated));
    }
    contenders.extend(
        [Pages::Cold, Pages::Populated].map(|pages| Contender::Limit {
            streams: options.limit_streams(),
            pages,
        }),
    );
    let further: &[Variant] = if plan.further_variants {
        &Variant::FURTHER
    } else {
        &[]
    };
    for qemu in &found.qemus {
        for variant in Variant::STANDARD.iter().chain(further) {
            contenders.push(Contender::Qemu {
                qemu: qemu.clone(),
                variant: *variant,
            });
        }
    }
    contenders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused_before_anything_is_started() {
        let good = BenchOptions {
            program: Some("/nonexistent".into()),
            ..Default::default()
        };
        for wrong in [
            BenchOptions {
                runs: 0,
                ..good.clone()
            },
            BenchOptions {
                streams: Some(17),
                ..good.clone()
            },
            BenchOptions {
                memory_bytes: 4096,
                ..good.clone()
            },
        ] {
            let error = run(&wrong, &mut Vec::new()).unwrap_err();
            assert_eq!(error.id(), "usage.option", "{error}");
        }
        let huge = BenchOptions {
            memory_bytes: 1 << 40,
            ..good
        };
        let error = run(&huge, &mut Vec::new()).unwrap_err();
        assert_eq!(error.id(), "host.memory", "{error}");
    }
}
