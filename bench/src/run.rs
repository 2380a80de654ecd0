//! One benchmark from its options to its summary: who takes part, in what order all is measured, and
//! what is printed when.

use std::io::Write;

use super::contender::Contender;
use super::error::BenchError;
use super::hosts::Hosts;
use super::mapping::Pages;
use super::options::{BenchOptions, Format};
use super::qemu::{Found, Variant};
use super::scenario::Plan;
use super::start::{self, StartFigures};
use super::summary::Summary;
use super::{goals, interrupt, page, proc, rounds};

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
        let section = match scenario.plan(options.memory_bytes) {
            Some(plan) => {
                let contenders = contenders(options, &plan, &found);
                let figures = rounds::measure(&hosts, &plan, contenders, options.runs)?;
                summary.goals.extend(goals::of(&figures));
                let section = summary.section(&figures);
                summary.scenarios.push(figures);
                section
            }
            None => {
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
        scenario
            .plan(options.memory_bytes)
            .map_or_else(start::needed_memory, |plan| plan.needed_memory())
    });
    needed.max().unwrap_or(0)
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
