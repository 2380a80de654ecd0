//! `vmm demo`.
use crate::cli::{DemoArgs, Exit, Launcher, Output};
use migration::observation::Observation;
pub(crate) fn run(
    args: &DemoArgs,
    _output: Output,
    launcher: &dyn Launcher,
) -> Result<Exit, Observation> {
    if let Some(path) = &args.export_guest {
        std::fs::write(path, launcher.probe_guest()).map_err(|e| {
            crate::cli::local("demo.export", format!("write {}: {e}", path.display()))
        })?;
    }
    Ok(Exit::Done)
}
