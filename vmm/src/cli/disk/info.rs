//! `vmm disk info`.

use std::path::Path;

use block::image::qcow2::{BackingRules, Header};
use block::image::{Look, look};
use control::exit::Exit;
use control::output::{Output, explain};
use control::units::human_bytes;
use migration::observation::Observation;
use serde::Serialize;

use super::args::InfoArgs;
use super::wrong::observed;

/// What is told of an image.
#[derive(Debug, Serialize)]
struct Info<'a> {
    path: &'a Path,
    format: &'static str,
    virtual_size: u64,
    file_size: u64,
    allocated: u64,
    in_use: bool,
    #[serde(flatten)]
    qcow2: Option<Qcow2Info>,
    backing: Vec<BackingInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_error: Option<Observation>,
}

/// What only a qcow2 image has.
#[derive(Debug, Serialize)]
struct Qcow2Info {
    version: u32,
    cluster_size: u64,
    refcount_bits: u32,
    features: Vec<String>,
    compatible_features: u64,
    autoclear_features: u64,
    snapshots: u32,
    bitmaps: u32,
    backing_name: Option<String>,
    backing_format: Option<String>,
    /// Why it cannot be used, if it cannot.
    not_readable: Option<String>,
    not_writable: Option<String>,
}

#[derive(Debug, Serialize)]
struct BackingInfo {
    path: std::path::PathBuf,
    format: &'static str,
}

impl From<&Header> for Qcow2Info {
    fn from(header: &Header) -> Self {
        let why = |result: Result<(), block::image::qcow2::Refusal>| {
            result.err().map(|refusal| refusal.to_string())
        };
        let backing = header.backing.as_ref();
        Self {
            version: header.version,
            cluster_size: header.cluster(),
            refcount_bits: 1 << header.refcount_order,
            features: header.features().iter().map(|f| f.name()).collect(),
            compatible_features: header.compatible,
            autoclear_features: header.autoclear,
            snapshots: header.snapshots,
            bitmaps: header.bitmaps.map_or(0, |bitmaps| bitmaps.count),
            backing_name: backing.map(|backing| backing.name.clone()),
            backing_format: backing.and_then(|backing| backing.format.clone()),
            not_readable: why(header.check_readable()),
            not_writable: why(header.check_writable()),
        }
    }
}

pub(super) fn run(args: &InfoArgs, output: Output) -> Result<Exit, Observation> {
    let rules = BackingRules {
        permitted: args.allow_backing.clone(),
    };
    let found = look(&args.path, args.format, &rules).map_err(|e| observed(&e))?;
    let Look {
        format,
        size,
        file_size,
        allocated,
        header,
        below,
        below_refused,
        is_in_use,
    } = found;
    let info = Info {
        path: &args.path,
        format: format.name(),
        virtual_size: size,
        file_size,
        allocated,
        in_use: is_in_use,
        qcow2: header.as_ref().map(Qcow2Info::from),
        backing: below
            .into_iter()
            .map(|(path, format)| BackingInfo {
                path,
                format: format.name(),
            })
            .collect(),
        backing_error: below_refused.as_ref().map(observed),
    };
    output.either(&info, lines(&info));
    Ok(Exit::Done)
}

fn lines(info: &Info<'_>) -> String {
    let bytes = |bytes: u64| format!("{} ({bytes} bytes)", human_bytes(bytes as f64));
    let mut lines = vec![
        format!("image      {}", info.path.display()),
        format!("format     {}", info.format),
        format!("disk       {}", bytes(info.virtual_size)),
        format!("file       {}", bytes(info.file_size)),
        format!("allocated  {}", bytes(info.allocated)),
        format!("in use     {}", if info.in_use { "yes" } else { "no" }),
    ];
    if let Some(qcow2) = &info.qcow2 {
        lines.push(format!(
            "qcow2      version {}, clusters of {}, refcounts of {} bits",
            qcow2.version,
            human_bytes(qcow2.cluster_size as f64),
            qcow2.refcount_bits
        ));
        if !qcow2.features.is_empty() {
            lines.push(format!("features   {}", qcow2.features.join(", ")));
        }
        if qcow2.snapshots > 0 {
            lines.push(format!("snapshots  {}", qcow2.snapshots));
        }
        if qcow2.bitmaps > 0 {
            lines.push(format!("bitmaps    {}", qcow2.bitmaps));
        }
        match (&qcow2.not_readable, &qcow2.not_writable) {
            (Some(why), _) => lines.push(format!("not used   it {why}")),
            (None, Some(why)) => lines.push(format!("not written  it {why}")),
            (None, None) => {}
        }
        if let Some(name) = &qcow2.backing_name {
            let format = qcow2.backing_format.as_deref().unwrap_or("of no format");
            lines.push(format!("backing    {name} ({format})"));
        }
    }
    for below in &info.backing {
        lines.push(format!(
            "below      {} ({})",
            below.path.display(),
            below.format
        ));
    }
    if let Some(why) = &info.backing_error {
        lines.push(format!(
            "below      not looked at: {}",
            explain(why).trim_end()
        ));
    }
    lines.join("\n")
}
