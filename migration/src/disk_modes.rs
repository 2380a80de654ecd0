//! How disks move with their guest, as their user says.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::observation::{Observation, Side};
use crate::source_loss::OnSourceLoss;
use crate::units::{ByteSize, Rate};

/// How a disk moves.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMode {
    /// The destination opens it where it lies, if it reaches it, and else takes it in where it was told to.
    #[default]
    Auto,
    /// It does not: the destination opens it where it lies.
    Shared,
    /// It is copied while the guest runs; what is written meanwhile is copied again, until the rest fits the downtime.
    Precopy,
    /// It is copied while the guest runs, and what is written meanwhile goes along with that; the guest's writes wait for the
    /// link, so that it ends however much is written.
    Mirror,
    /// Its image stays as it is while it is copied, and its guest goes on in an overlay; then what is in overlays follows, in
    /// rounds, until the rest fits the downtime.
    Snapshot,
    /// Its guest goes without its content, and has that fetched from this host when it runs at the destination.
    OnDemand,
}

/// What comes of a disk on demand that nobody asks for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskPull {
    /// All of it, in the background.
    #[default]
    Background,
    /// Nothing.
    Off,
}

impl DiskPull {
    /// Whether it is the usual one.
    pub fn is_background(&self) -> bool {
        *self == Self::Background
    }
}

/// Format of an image.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Its bytes are those of the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// Who can reach the storage of an image.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageReach {
    /// This host alone, at any one time.
    ThisHost,
    /// Other hosts as well, perhaps.
    OtherHosts,
}

/// What becomes of the image at the source of a disk that has travelled.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterMove {
    /// It stays, marked as one whose disk has moved away.
    #[default]
    Keep,
    /// Whoever asked for the migration removes it, once the destination has said that it holds the disk whole and
    /// durable, and the guest runs there.
    Delete,
}

/// When a mirrored disk moves, next to its guest.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveOrder {
    /// Before it: memory begins to be copied once nothing of the disk is missing but what the guest is ahead of the link.
    Before,
    /// After it: it goes [on demand](DiskMode::OnDemand).
    After,
}

impl AfterMove {
    fn is_keep(&self) -> bool {
        *self == Self::Keep
    }
}

/// What is chosen for one disk, or for all.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskChoice {
    /// Identity of the disk; absent for all that are not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How it moves.
    pub mode: DiskMode,
    /// Format of the image that the destination makes, or writes over, if it travels; absent where that is left to the
    /// destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// What becomes of its image at the source, if it travels.
    #[serde(default, skip_serializing_if = "AfterMove::is_keep")]
    pub after: AfterMove,
    /// Bytes that the guest may be ahead of the link at most before its changes wait, if the disk is mirrored; absent where only
    /// the downtime limit says so.
    #[serde(
        rename = "backlog_bytes",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub backlog: Option<u64>,
    /// Most that the guest may write to it in a second while it is mirrored; absent or 0 is unlimited.
    #[serde(
        rename = "writes_bytes_per_s",
        default,
        skip_serializing_if = "Rate::is_unlimited"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub writes: Rate,
    /// When it moves, as its user said of a mirror: `before` its guest, or `after` it, which is on demand; absent where that goes
    /// beside its guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<MoveOrder>,
    /// What comes of it that nobody asks for, if it goes on demand.
    #[serde(default, skip_serializing_if = "DiskPull::is_background")]
    pub pull: DiskPull,
    /// What requests for its missing blocks do while whoever serves them is lost, if it goes on demand.
    #[serde(default, skip_serializing_if = "OnSourceLoss::is_pause")]
    pub on_source_loss: OnSourceLoss,
}

/// Options of a disk in ways to move that are not there yet.
const NOT_YET: &[&str] = &["log", "keep-chain", "bandwidth"];

/// Why overlays do not lie at `side`.
fn no_overlay_at(side: &str) -> String {
    match side {
        "source" => "overlay=source is for a disk that moves by snapshot".into(),
        "destination" => "overlay=destination is of vmm disk move: overlays of a disk that moves with its guest lie beside its \
             image, where they always do"
            .into(),
        _ => format!("{side:?} is nowhere for overlays: overlay=source says where they lie"),
    }
}

/// Why no disk moves in part before its guest and in part after it.
const ACROSS: &str = "mirror,across is not in this version: a disk that is partly at the destination when its guest goes would need \
     a presence map of what was sent, which only a disk that goes on demand from its beginning has; before and after are there";

impl DiskChoice {
    /// That `mode` is how all disks move, or disk `id`, and nothing else is said.
    pub fn new(id: Option<String>, mode: DiskMode) -> Self {
        Self {
            id,
            mode,
            format: None,
            after: AfterMove::default(),
            backlog: None,
            writes: Rate::default(),
            order: None,
            pull: DiskPull::default(),
            on_source_loss: OnSourceLoss::default(),
        }
    }

    /// Whether what is said goes together.
    fn check(&self) -> Result<(), String> {
        if self.backlog.is_some() && self.mode != DiskMode::Mirror {
            return Err("backlog= is for a disk that is mirrored".into());
        }
        if !self.writes.is_unlimited() && self.mode != DiskMode::Mirror {
            return Err("writes= is for a disk that is mirrored".into());
        }
        let ordered = match self.order {
            None => self.mode,
            Some(MoveOrder::Before) => DiskMode::Mirror,
            Some(MoveOrder::After) => DiskMode::OnDemand,
        };
        if ordered != self.mode {
            return Err("before and after are for a disk that is mirrored".into());
        }
        if self.mode == DiskMode::OnDemand && self.after == AfterMove::Delete {
            return Err(
                "after=delete does not go with on-demand: the destination needs the image until the disk is whole there; \
                 remove it when vmm disk serve --list says that it is released"
                    .into(),
            );
        }
        if self.mode != DiskMode::OnDemand && self.pull == DiskPull::Off {
            return Err("pull= is for a disk that moves on-demand".into());
        }
        if self.mode != DiskMode::OnDemand && !self.on_source_loss.is_pause() {
            return Err("on-source-loss= is for a disk that moves on-demand".into());
        }
        let said = match (self.format, self.after) {
            (Some(_), _) => "format=",
            (None, AfterMove::Delete) => "after=delete",
            (None, AfterMove::Keep) => return Ok(()),
        };
        match self.mode {
            DiskMode::Shared => Err(format!(
                "{said} is for a disk that travels, and a shared one keeps its image"
            )),
            DiskMode::Auto
            | DiskMode::Precopy
            | DiskMode::Mirror
            | DiskMode::Snapshot
            | DiskMode::OnDemand => Ok(()),
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!(
                "{text:?} is no format that an image can be made in: raw and qcow2 are"
            )),
        }
    }
}

impl FromStr for AfterMove {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "delete" => Ok(Self::Delete),
            "mirror" => Err("after=mirror is not in this version: keep and delete are".into()),
            _ => Err(format!(
                "{text:?} is nothing that can become of an image: keep and delete are"
            )),
        }
    }
}

impl FromStr for DiskPull {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "background" => Ok(Self::Background),
            "off" => Ok(Self::Off),
            _ => Err(format!(
                "pull={text} is nothing that a disk on demand does: background and off are"
            )),
        }
    }
}

impl FromStr for DiskMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "shared" => Ok(Self::Shared),
            "precopy" => Ok(Self::Precopy),
            "mirror" => Ok(Self::Mirror),
            "on-demand" => Ok(Self::OnDemand),
            "snapshot" => Ok(Self::Snapshot),
            _ => Err(format!(
                "{text:?} is no way for disks to move: auto, shared, precopy, mirror, snapshot and on-demand are"
            )),
        }
    }
}

impl FromStr for DiskChoice {
    type Err = String;

    /// Reads `[ID=]MODE[,before|after][,format=raw|qcow2][,after=keep|delete][,backlog=BYTES][,writes=RATE][,pull=background|off]
    /// [,on-source-loss=pause|error[:TIME]]`. A mirror `after` its guest is one on demand.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let what = parts.next().unwrap_or_default();
        let (id, mode) = match what.split_once('=') {
            Some((id, mode)) => (Some(id.to_owned()), mode),
            None => (None, what),
        };
        if id.as_deref() == Some("") {
            return Err("write MODE, or ID=MODE with the id of a disk".into());
        }
        let mut mode = mode.parse()?;
        let (mut format, mut after, mut backlog, mut pull) = (None, None, None, None);
        let (mut writes, mut order, mut overlay) = (None, None, None);
        let mut on_source_loss = None;
        for part in parts {
            let again = match part.split_once('=') {
                Some(("format", name)) => format.replace(name.parse()?).is_some(),
                Some(("after", name)) => after.replace(name.parse()?).is_some(),
                Some(("backlog", size)) => {
                    let size = size.parse::<ByteSize>().map_err(|e| e.to_string())?;
                    backlog.replace(size.0).is_some()
                }
                Some(("writes", rate)) => {
                    let rate = rate.parse::<Rate>().map_err(|e| e.to_string())?;
                    writes.replace(rate).is_some()
                }
                None if part == "before" => order.replace(MoveOrder::Before).is_some(),
                None if part == "after" => order.replace(MoveOrder::After).is_some(),
                None if part == "across" => return Err(ACROSS.into()),
                Some(("overlay", "source")) if mode == DiskMode::Snapshot => {
                    overlay.replace(()).is_some()
                }
                Some(("overlay", side)) => return Err(no_overlay_at(side)),
                Some(("pull", name)) => pull.replace(name.parse()?).is_some(),
                Some(("on-source-loss", what)) => on_source_loss.replace(what.parse()?).is_some(),
                _ => {
                    let key = part.split_once('=').map_or(part, |(key, _)| key);
                    return Err(match NOT_YET.contains(&key) {
                        true => format!(
                            "{part:?} is an option of a way to move disks that is not in this version"
                        ),
                        false => format!(
                            "{part:?} is no option of a disk that moves: format=raw|qcow2, after=keep|delete, backlog=BYTES, \
                             writes=RATE, before, after, pull=background|off and on-source-loss=pause|error[:TIME] are"
                        ),
                    });
                }
            };
            if again {
                return Err(format!("{part:?}: that is said twice"));
            }
        }
        if let (DiskMode::Mirror, Some(MoveOrder::After)) = (mode, order) {
            mode = DiskMode::OnDemand;
        } else if order == Some(MoveOrder::After) {
            return Err(
                "after is for a disk that is mirrored: on-demand moves it after its guest".into(),
            );
        }
        let choice = Self {
            id,
            mode,
            format,
            after: after.unwrap_or_default(),
            backlog,
            writes: writes.unwrap_or_default(),
            order,
            pull: pull.unwrap_or_default(),
            on_source_loss: on_source_loss.unwrap_or_default(),
        };
        choice.check().map(|()| choice)
    }
}

/// How each disk of a guest moves, by its identity.
pub type DiskModes = Vec<(String, DiskMode)>;

/// How each of the disks `all` moves, of what is chosen; in the order of `all`.
///
/// # Errors
/// `usage.disks` when a disk is chosen for that is not among them, or twice.
pub fn modes<'d>(
    choices: &[DiskChoice],
    all: impl Iterator<Item = &'d str> + Clone,
) -> Result<DiskModes, Observation> {
    let wrong = |what: String| Err(Observation::new(Side::Client, "usage.disks", what));
    for (number, choice) in choices.iter().enumerate() {
        if let Err(what) = choice.check() {
            return wrong(what);
        }
        if choices[..number].iter().any(|other| other.id == choice.id) {
            return wrong(match &choice.id {
                Some(id) => format!("it is said twice how disk {id} moves"),
                None => "it is said twice how disks move".into(),
            });
        }
        if let Some(id) = &choice.id
            && !all.clone().any(|disk| disk == id)
        {
            let all: Vec<_> = all.collect();
            return wrong(match all.is_empty() {
                true => format!("the guest has no disk {id}, and no others"),
                false => format!("the guest has no disk {id}: it has {}", all.join(", ")),
            });
        }
    }
    let mode = |disk: &str| chosen(choices, disk).map_or(DiskMode::Auto, |choice| choice.mode);
    Ok(all.map(|disk| (disk.to_owned(), mode(disk))).collect())
}

/// What is chosen for `disk`: what names it goes before what is said of all.
pub fn chosen<'c>(choices: &'c [DiskChoice], disk: &str) -> Option<&'c DiskChoice> {
    let named = |choice: &&DiskChoice| choice.id.as_deref() == Some(disk);
    let of_all = |choice: &&DiskChoice| choice.id.is_none();
    choices.iter().find(named).or(choices.iter().find(of_all))
}

#[cfg(test)]
mod tests {
    use DiskMode::{Auto, Mirror, Precopy, Shared};

    use super::*;

    fn modes_of(choices: &[&str]) -> Result<[DiskMode; 2], String> {
        let choices: Vec<DiskChoice> = choices.iter().map(|text| text.parse().unwrap()).collect();
        let all = ["root", "data"];
        let modes = modes(&choices, all.into_iter()).map_err(|why| why.message)?;
        assert_eq!([&*modes[0].0, &*modes[1].0], all);
        Ok([modes[0].1, modes[1].1])
    }

    #[test]
    fn what_is_said_of_one_disk_goes_before_what_is_said_of_all() {
        for (choices, expected) in [
            (&[][..], [Auto, Auto]),
            (&["shared"], [Shared, Shared]),
            (&["precopy"], [Precopy, Precopy]),
            (&["data=precopy"], [Auto, Precopy]),
            (&["precopy", "root=shared"], [Shared, Precopy]),
            (&["root=auto", "precopy"], [Auto, Precopy]),
            (&["precopy", "data=mirror"], [Precopy, Mirror]),
        ] {
            assert_eq!(modes_of(choices), Ok(expected), "{choices:?}");
        }
    }

    #[test]
    fn disks_that_are_not_there_or_named_twice_are_refused() {
        let refused = modes_of(&["other=precopy"]).unwrap_err();
        assert!(refused.contains("it has root, data"), "{refused}");
        modes_of(&["root=precopy", "root=shared"]).unwrap_err();
        modes_of(&["precopy", "shared"]).unwrap_err();
        for text in ["", "=precopy", "copy", "data="] {
            text.parse::<DiskChoice>().unwrap_err();
        }
    }

    #[test]
    fn options_follow_the_mode_and_are_those_of_the_disk() {
        let read = |text: &str| text.parse::<DiskChoice>();
        let all = read("precopy,after=delete").unwrap();
        let data = read("data=auto,format=qcow2").unwrap();
        assert_eq!((all.format, all.after), (None, AfterMove::Delete));
        assert_eq!(data.format, Some(DiskFormat::Qcow2));
        // What names a disk is all that is said of it.
        let choices = [all.clone(), data.clone()];
        assert_eq!(chosen(&choices, "data"), Some(&data));
        assert_eq!(chosen(&choices, "root"), Some(&all));
        assert_eq!(chosen(&choices[1..], "root"), None);
        for (text, named) in [
            ("precopy,size=7", "size=7"),
            ("precopy,", "\"\""),
            ("data=precopy,log=mirror", "not in this version"),
            ("data=precopy,before", "mirrored"),
            ("data=precopy,after", "mirrored"),
            ("data=mirror,across", "presence map"),
            ("mirror,before,after", "twice"),
            ("mirror,after,after=delete", "whole there"),
            ("mirror,after,writes=7B/s", "writes="),
            ("precopy,writes=7B/s", "mirrored"),
            ("mirror,writes=much", "much"),
            ("data=precopy,after=mirror", "after=mirror"),
            ("data=precopy,after=burn", "burn"),
            ("data=snapshot,overlay=destination", "overlay=destination"),
            ("data=precopy,overlay=source", "snapshot"),
            ("data=snapshot,overlay=source,overlay=source", "twice"),
            ("data=precopy,format=vmdk", "vmdk"),
            ("data=precopy,format=raw,format=raw", "twice"),
            ("shared,format=raw", "format="),
            ("shared,after=delete", "after=delete"),
            ("precopy,backlog=1MiB", "mirrored"),
            ("mirror,backlog=much", "much"),
            ("on-demand,after=delete", "whole there"),
            ("precopy,pull=off", "on-demand"),
            ("on-demand,pull=slowly", "pull=slowly"),
            ("on-demand,pull=off,pull=off", "twice"),
            ("precopy,on-source-loss=error", "on-demand"),
            ("on-demand,on-source-loss=never", "never"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(named), "{text}: {refused}");
        }
        read("shared,after=keep").unwrap();
        for (text, backlog) in [("0", 0), ("4MiB", 4 << 20)] {
            let choice = read(&format!("data=mirror,backlog={text}")).unwrap();
            assert_eq!(choice.backlog, Some(backlog));
        }
        let later = read("data=on-demand,pull=off,format=qcow2,on-source-loss=error:2s").unwrap();
        assert_eq!(
            (later.mode, later.pull),
            (DiskMode::OnDemand, DiskPull::Off)
        );
        assert_eq!(later.on_source_loss.to_string(), "error:2s");
        // As a program says it.
        let shared = DiskChoice {
            after: AfterMove::Delete,
            ..DiskChoice::new(None, Shared)
        };
        let refused = modes(&[shared], ["data"].into_iter()).unwrap_err();
        assert_eq!(refused.id, "usage.disks");
    }
}
