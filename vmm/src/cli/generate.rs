//! Completions and man pages, from the definition of the command line.

use std::path::Path;

use clap::CommandFactory;
use control::exit::{Exit, local};
use migration::observation::Observation;

use super::args::Cli;
use control::output::print;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<Exit, Observation> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmm", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}

pub(super) fn man_pages(dir: &Path) -> Result<Exit, Observation> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|e| local("vm.man-pages", format!("write {}: {e}", dir.display())))?;
    Ok(Exit::Done)
}
