//! `vmm disk resize`.

use block::Content;
use block::image::Format;
use block::image::qcow2::BackingRules;
use block::image::qcow2::resize::{self, Shrink};
use control::exit::Exit;
use control::output::Output;
use control::units::human_bytes;
use migration::observation::Observation;

use super::args::ResizeArgs;
use super::wrong::observed;

pub(super) fn run(args: &ResizeArgs, output: Output) -> Result<Exit, Observation> {
    let ResizeArgs {
        path,
        size,
        shrink,
        format,
        allow_backing,
    } = args;
    let size = size.0;
    let shrink = if *shrink {
        Shrink::Allowed
    } else {
        Shrink::Refused
    };
    let rules = BackingRules {
        permitted: allow_backing.clone(),
    };
    let resized = match format {
        Some(Format::Qcow2) => resize::resize(path, size, shrink, &rules),
        Some(Format::Raw) => resize::resize_raw(path, size, shrink, Content::Raw),
        None => resize::resize_raw(path, size, shrink, Content::Guess),
    };
    resized.map_err(|e| observed(&e))?;
    let format = format.unwrap_or(Format::Raw);
    let object = serde_json::json!({
        "path": path, "format": format.name(), "virtual_size": size,
    });
    let shown = human_bytes(size as f64);
    output.either(&object, format!("{}: {format}, {shown}", path.display()));
    Ok(Exit::Done)
}
