//! The options of `vmm bench` as the command line takes them.

use clap::{Args, ValueEnum};

use super::{BenchOptions, Format, Scenario};
use crate::units::ByteSize;

/// Measures migration and start on this host, next to what the host can do at most.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Runs of each measurement, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Random memory of the idle guest.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory: ByteSize,
    /// Connections of a migration and of the plain copy.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub streams: u8,
    /// Measure only this.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub only: Option<OnlyArg>,
}

/// What `--only` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnlyArg {
    /// A guest with random memory, against the plain copy of the same bytes
    Idle,
    /// A large guest that touched little of its memory
    Zero,
    /// Starting a guest, and the memory of the VMM
    Start,
}

impl BenchArgs {
    /// What is to be measured, printed as `format`.
    pub fn into_options(self, format: Format) -> BenchOptions {
        let Self {
            runs,
            memory,
            streams,
            only,
        } = self;
        let scenarios = match only {
            None => Scenario::ALL.to_vec(),
            Some(OnlyArg::Idle) => vec![Scenario::Idle],
            Some(OnlyArg::Zero) => vec![Scenario::Zero],
            Some(OnlyArg::Start) => vec![Scenario::Start],
        };
        BenchOptions {
            runs,
            random_bytes: memory.0,
            streams,
            format,
            scenarios,
            program: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchOptions, clap::Error> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let command = Command::try_parse_from(words)?;
        Ok(command.args.into_options(Format::Table))
    }

    #[test]
    fn options_become_what_is_measured() {
        assert_eq!(parse("").unwrap(), BenchOptions::default());
        let options = parse("--runs 3 --memory 256MiB --streams 2 --only zero").unwrap();
        assert_eq!(
            options,
            BenchOptions {
                runs: 3,
                random_bytes: 256 << 20,
                streams: 2,
                format: Format::Table,
                scenarios: vec![Scenario::Zero],
                program: None,
            }
        );
        for wrong in ["--runs 0", "--streams 17", "--memory 1QiB", "--only all"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
