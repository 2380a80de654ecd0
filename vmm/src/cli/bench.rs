//! `vmm bench`.

use migration::observation::{Observation, Side};

use super::Output;
use super::exit::Exit;
use crate::bench::{self, BenchArgs, BenchError, Format};

pub(super) fn run(args: BenchArgs, output: Output) -> Result<Exit, Observation> {
    let format = if output.is_json() {
        Format::Json
    } else {
        Format::Table
    };
    match bench::run(&args.into_options(format), &mut std::io::stdout()) {
        Ok(_) => Ok(Exit::Done),
        Err(BenchError::Interrupted) => {
            output.object(&serde_json::json!({ "status": "cancelled" }));
            eprintln!("vmm: interrupted");
            Ok(Exit::Cancelled)
        }
        Err(error) => Err(Observation::from_error(Side::Client, error.id(), &error)),
    }
}
