//! The program behind `vmm bench`.

use std::process::ExitCode;

use bench::{BenchArgs, BenchError, Format};
use clap::Parser;
use control::exit::{Exit, exit_of};
use control::output::Output;
use control::signals;
use migration::observation::{Observation, Side};

/// Measures migration and start on this host, next to QEMU and to what the host can do at most.
#[derive(Debug, Parser)]
#[command(name = "vmm-bench", bin_name = "vmm bench", version)]
struct Cli {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    args: BenchArgs,
}

fn main() -> ExitCode {
    signals::unblock_all();
    let Cli { json, args } = Cli::parse();
    let output = Output::new(json);
    let format = if json { Format::Json } else { Format::Table };
    let exit = match bench::run(&args.into_options(format), &mut std::io::stdout()) {
        Ok(_) => Exit::Done,
        Err(BenchError::Interrupted) => {
            output.object(&serde_json::json!({ "status": "cancelled" }));
            eprintln!("vmm: interrupted");
            Exit::Cancelled
        }
        Err(error) => {
            let observation = Observation::from_error(Side::Client, error.id(), &error);
            output.error(&observation);
            exit_of(&observation)
        }
    };
    exit.into()
}
