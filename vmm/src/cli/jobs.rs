//! `vmm jobs`.

use control::api::client::Client;
use control::exit::Exit;
use control::output::Output;
use control::runtime_dir::RuntimeDir;
use migration::observation::Observation;

use super::args::JobsArgs;
use super::event_loop::block_on;
use super::followed::{Followed, exit_of_job};
use super::job_row::{row, show};

pub(super) fn run(
    args: &JobsArgs,
    runtime: &RuntimeDir,
    output: Output,
) -> Result<Exit, Observation> {
    let JobsArgs {
        name,
        id,
        cancel,
        pause,
        resume,
        set,
        follow,
    } = args;
    let client = Client::new(runtime, name);
    let Some(id) = id else {
        for job in block_on(client.jobs())?.jobs {
            output.either(&job, row(&job));
        }
        return Ok(Exit::Done);
    };
    if *follow {
        let job = block_on(async {
            let lines = client.follow_job(id).await?;
            Followed::new(&client, id, lines, output).end().await
        })?;
        show(&job, output);
        return Ok(exit_of_job(&job));
    }
    let job = match set {
        _ if *cancel => block_on(client.cancel_job(id))?,
        _ if *pause => block_on(client.pause_job(id))?,
        _ if *resume => block_on(client.resume_job(id))?,
        Some(limits) => block_on(client.set_job_limits(id, limits))?,
        None => block_on(client.job(id))?,
    };
    show(&job, output);
    Ok(Exit::Done)
}
