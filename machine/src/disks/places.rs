//! Where the disks of a machine lie, by which a destination tells whether it has the same ones.

use block::Identity;
use migration::observation::{Observation, Side};
use migration::vm::MachineDescription;
use serde::{Deserialize, Serialize};

/// Longest description of places that is read.
const MAX_LEN: usize = 64 << 10;

/// Where a machine's disks lie at its source; JSON beside the machine's description. A source of version
/// 0.1 tells nothing of this, and fields that this version does not know are not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskPlaces {
    /// Which host it is: the boot of its kernel.
    pub host: Option<String>,
    /// Socket at which a successor on this host is passed the exclusive opens of block devices, if there are any.
    pub holds: Option<String>,
    /// Each disk.
    pub disks: Vec<DiskPlace>,
}

/// Where a disk lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlace {
    /// Which disk.
    pub id: String,
    /// As in [`Identity`].
    pub device: u64,
    /// As in [`Identity`].
    pub inode: u64,
    /// As in [`Identity`].
    #[serde(default)]
    pub below: Option<(u64, u64)>,
    /// As in [`Identity`].
    #[serde(default)]
    pub is_local: bool,
}

impl DiskPlace {
    /// Where the image of disk `id` lies.
    pub fn of(id: &str, identity: &Identity) -> Self {
        let Identity {
            name: _,
            device,
            inode,
            below,
            is_local,
        } = *identity;
        Self {
            id: id.to_owned(),
            device,
            inode,
            below,
            is_local,
        }
    }

    /// As an image's.
    pub fn identity(&self) -> Identity {
        Identity {
            name: String::new(),
            device: self.device,
            inode: self.inode,
            below: self.below,
            is_local: self.is_local,
        }
    }
}

/// What a destination makes of an image that it is to take for the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the guest's, as far as can be told.
    Same,
    /// Only what is in it can tell.
    Doubtful,
    /// It is another; why.
    Another(String),
}

impl DiskPlaces {
    /// What the source told, if it did.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn told(description: &MachineDescription) -> Result<Option<Self>, Observation> {
        let Some(text) = &description.disks else {
            return Ok(None);
        };
        let refuse =
            |message: String| Observation::new(Side::Destination, "negotiate.machine", message);
        if text.len() > MAX_LEN {
            let len = text.len();
            return Err(refuse(format!("{len} bytes about disks are too many")));
        }
        serde_json::from_str(text)
            .map(Some)
            .map_err(|e| refuse(format!("where the disks lie cannot be read: {e}")))
    }

    /// As it travels.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn to_json(&self) -> Result<String, Observation> {
        serde_json::to_string(self)
            .map_err(|e| Observation::from_error(Side::Source, "machine.describe", &e))
    }

    /// Whether the source is on the host that is known as `here`.
    pub fn is_on(&self, here: Option<&str>) -> bool {
        here.is_some() && self.host.as_deref() == here
    }
}

/// Whether the image `found` is disk `id`, which somebody owns as far as locks tell, or nobody; `told` is
/// what the source says, and `here` this host.
pub fn judge(
    id: &str,
    found: &Identity,
    owner: bool,
    told: Option<&DiskPlaces>,
    here: Option<&str>,
) -> Verdict {
    let told = told.and_then(|told| {
        let place = told.disks.iter().find(|place| place.id == id)?;
        Some((place.identity(), told.is_on(here)))
    });
    let nobody = "the guest uses its disk, and nobody uses this one";
    match told {
        // Owners of a file system that only this host has are on this host, and their locks are seen.
        None if found.is_local && !owner => Verdict::Another(nobody.into()),
        None => Verdict::Same,
        Some((there, true)) if found.is_same_as(&there) => Verdict::Same,
        Some((there, true)) => {
            // A share that is mounted twice, as in two containers, is two devices.
            if owner && !found.is_local && !there.is_local && is_same_file(found, &there) {
                Verdict::Doubtful
            } else {
                let (found, there) = (shown(found), shown(&there));
                Verdict::Another(format!("the guest's disk is {there}, this is {found}"))
            }
        }
        Some((_, false)) if owner => Verdict::Same,
        Some((there, false)) if found.is_local && there.is_local => Verdict::Another(format!(
            "{nobody}; both lie on file systems that hosts do not share"
        )),
        Some((_, false)) => Verdict::Doubtful,
    }
}

fn is_same_file(one: &Identity, other: &Identity) -> bool {
    one.inode != 0 && one.inode == other.inode
}

fn shown(identity: &Identity) -> String {
    let (major, minor) = (
        rustix::fs::major(identity.device),
        rustix::fs::minor(identity.device),
    );
    match identity.inode {
        0 => format!("block device {major}:{minor}"),
        inode => format!("inode {inode} of device {major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<&str> = Some("here");

    fn file(device: u64, inode: u64, is_local: bool) -> Identity {
        Identity {
            name: "/srv/image".into(),
            device,
            inode,
            below: None,
            is_local,
        }
    }

    fn told(host: Option<&str>, identity: &Identity) -> DiskPlaces {
        DiskPlaces {
            host: host.map(str::to_owned),
            holds: None,
            disks: vec![DiskPlace::of("data", identity)],
        }
    }

    #[test]
    fn one_host_is_judged_by_device_and_inode() {
        let there = file(8, 12, true);
        let judge =
            |found: &Identity, owner| judge("data", found, owner, Some(&told(HERE, &there)), HERE);
        assert_eq!(judge(&there, true), Verdict::Same);
        // Storage without locks.
        assert_eq!(judge(&there, false), Verdict::Same);
        for (found, owner) in [(file(8, 13, true), false), (file(9, 12, true), true)] {
            let Verdict::Another(why) = judge(&found, owner) else {
                panic!("{found:?} is another")
            };
            assert!(why.contains("inode 12 of device 0:8"), "{why}");
        }
        let device = Identity {
            below: Some((8, 12)),
            ..file(0x700, 0, true)
        };
        assert_eq!(judge(&device, true), Verdict::Same);
    }

    #[test]
    fn a_share_that_is_mounted_twice_on_one_host_is_told_by_its_content() {
        let there = told(HERE, &file(60, 12, false));
        let judge = |found, owner| judge("data", &found, owner, Some(&there), HERE);
        assert_eq!(judge(file(61, 12, false), true), Verdict::Doubtful);
        for (found, owner) in [
            (file(61, 12, false), false),
            (file(61, 13, false), true),
            (file(61, 12, true), true),
        ] {
            assert!(matches!(judge(found, owner), Verdict::Another(_)));
        }
    }

    #[test]
    fn another_host_is_judged_by_the_owners_lock_then_by_content() {
        for host in [Some("there"), None] {
            for here in [HERE, None] {
                let judge = |found: &Identity, owner, there: &Identity| {
                    judge("data", found, owner, Some(&told(host, there)), here)
                };
                let (local, shared) = (file(8, 12, true), file(60, 5, false));
                assert_eq!(judge(&shared, true, &shared), Verdict::Same);
                assert_eq!(judge(&local, true, &local), Verdict::Same);
                assert_eq!(judge(&shared, false, &shared), Verdict::Doubtful);
                // The server of a share has it as a file of its own.
                assert_eq!(judge(&local, false, &shared), Verdict::Doubtful);
                assert_eq!(judge(&shared, false, &local), Verdict::Doubtful);
                let refused = judge(&local, false, &local);
                assert!(matches!(refused, Verdict::Another(_)), "{refused:?}");
            }
        }
    }

    #[test]
    fn an_older_source_is_judged_by_the_lock_where_it_must_be_seen() {
        let judge = |found, owner| judge("data", &found, owner, None, HERE);
        assert_eq!(judge(file(8, 12, true), true), Verdict::Same);
        assert!(matches!(
            judge(file(8, 12, true), false),
            Verdict::Another(_)
        ));
        assert_eq!(judge(file(60, 12, false), false), Verdict::Same);
    }

    #[test]
    fn what_a_later_source_adds_is_not_looked_at() {
        let places = told(HERE, &file(8, 12, true));
        let mut description = MachineDescription {
            name: "guest".into(),
            ram: Vec::new(),
            machine: String::new(),
            disks: None,
        };
        assert_eq!(DiskPlaces::told(&description).unwrap(), None);
        description.disks = Some(places.to_json().unwrap());
        assert_eq!(DiskPlaces::told(&description).unwrap(), Some(places));
        description.disks =
            Some(r#"{"disks":[{"id":"a","device":1,"inode":2,"new":3}],"new":4}"#.into());
        let read = DiskPlaces::told(&description).unwrap().unwrap();
        assert_eq!(read.disks[0].inode, 2);
        description.disks = Some("[".into());
        assert!(DiskPlaces::told(&description).is_err());
        description.disks = Some(" ".repeat(MAX_LEN + 1));
        assert!(DiskPlaces::told(&description).is_err());
    }
}
