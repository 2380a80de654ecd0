//! `vmm disk create`.

use block::image::Format;
use block::image::qcow2::create::{self, DEFAULT_CLUSTER_BITS, NewImage};
use control::exit::Exit;
use control::output::Output;
use control::units::human_bytes;
use migration::observation::Observation;

use super::args::CreateArgs;
use super::wrong::{observed, usage};

pub(super) fn run(args: &CreateArgs, output: Output) -> Result<Exit, Observation> {
    let CreateArgs {
        path,
        size,
        format,
        cluster_size,
        backing,
        backing_format,
    } = args;
    let size = size.0;
    let made = match format {
        Format::Raw if cluster_size.is_some() || backing.is_some() => {
            return Err(usage(
                "only a qcow2 image has clusters and a file below it: add --format qcow2",
            ));
        }
        Format::Raw => create::create_raw(path, size),
        Format::Qcow2 => {
            let image = NewImage {
                size,
                cluster_bits: cluster_size.unwrap_or(DEFAULT_CLUSTER_BITS),
                backing: backing.clone().zip(*backing_format),
            };
            create::create(path, &image)
        }
    };
    made.map_err(|e| observed(&e))?;
    let object = serde_json::json!({
        "path": path, "format": format.name(), "virtual_size": size,
    });
    let shown = human_bytes(size as f64);
    output.either(&object, format!("{}: {format}, {shown}", path.display()));
    Ok(Exit::Done)
}
