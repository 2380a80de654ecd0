//! What both sides of a conversation can do, worked out once from their first words.

use super::capabilities::Capabilities;
use super::hello::Hello;
use super::{MIN_VERSION, VERSION};
use crate::error::Error;
use crate::wire::control::Welcome;

/// Version from which on hello and welcome tell capabilities; before, they follow from the version.
const TELLS_CAPABILITIES: u16 = 4;

/// What both sides speak. A destination works it out from the hello and says it in the welcome, by which the source
/// knows; it holds for as long as the migration does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed {
    version: u16,
    capabilities: Capabilities,
}

impl Agreed {
    /// With a peer that speaks `version`, and can do `told` as far as that version tells it.
    fn with(version: u16, told: Capabilities) -> Self {
        let theirs = if version >= TELLS_CAPABILITIES {
            told
        } else {
            Capabilities::of_version(version)
        };
        Self {
            version,
            capabilities: Capabilities::OURS & theirs,
        }
    }

    /// What a destination has in common with who says this hello; `None` without a common version.
    pub fn from_hello(hello: &Hello) -> Option<Self> {
        let version = hello.common_version()?;
        Some(Self::with(version, hello.capabilities))
    }

    /// What a destination has agreed on, as it says.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it was not offered that, or does not do what it says.
    pub fn from_welcome(welcome: &Welcome) -> Result<Self, Error> {
        let version = welcome.version;
        if !(MIN_VERSION..=VERSION).contains(&version) {
            return Err(Error::Protocol(format!(
                "it wants to speak version {version}"
            )));
        }
        let agreed = Self::with(
            version,
            Capabilities::from_bits(welcome.capabilities.unwrap_or(0)),
        );
        if agreed.has(Capabilities::NAMES_HOST) && welcome.host.is_none() {
            return Err(Error::Protocol("its welcome names no host".into()));
        }
        Ok(agreed)
    }

    /// Version of the protocol.
    pub fn version(self) -> u16 {
        self.version
    }

    /// Whether both can do all of `what`.
    pub fn has(self, what: Capabilities) -> bool {
        self.capabilities.contains(what)
    }

    /// Which capabilities a welcome tells; `None` to a source that does not look for any.
    pub fn told(self) -> Option<u64> {
        (self.version >= TELLS_CAPABILITIES).then_some(self.capabilities.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{HostId, MigrationId};
    use crate::wire::hello::Role;

    fn hello(version: u16, capabilities: Capabilities) -> Hello {
        Hello {
            version,
            capabilities,
            ..Hello::new(Role::Control, MigrationId([1; 16]), [0; 16])
        }
    }

    fn welcome(agreed: Agreed) -> Welcome {
        Welcome {
            version: agreed.version(),
            token: [0; 16],
            host: Some(HostId([2; 16])),
            capabilities: agreed.told(),
            placed: None,
        }
    }

    #[test]
    fn both_sides_come_to_the_same() {
        let some = Capabilities::STATE_FORM | Capabilities::NAMES_HOST;
        for (version, capabilities) in [
            (1, Capabilities::NONE),
            (2, Capabilities::NONE),
            (3, Capabilities::from_bits(u64::MAX)),
            (4, some),
            (4, Capabilities::from_bits(u64::MAX)),
            (9, Capabilities::OURS),
        ] {
            let here = Agreed::from_hello(&hello(version, capabilities)).unwrap();
            assert_eq!(Agreed::from_welcome(&welcome(here)).unwrap(), here);
        }
    }

    #[test]
    fn what_an_older_engine_can_do_follows_from_its_version_alone() {
        let of = |version| Agreed::from_hello(&hello(version, Capabilities::OURS)).unwrap();
        assert!(!of(1).has(Capabilities::NAMES_HOST));
        assert!(of(2).has(Capabilities::NAMES_HOST));
        assert!(!of(2).has(Capabilities::ANY_STRIPE));
        assert!(of(3).has(Capabilities::ANY_STRIPE | Capabilities::FORWARDED_PACKETS));
        assert!(!of(3).has(Capabilities::STATE_FORM));
        assert_eq!(of(3).told(), None);
    }

    #[test]
    fn nothing_is_agreed_on_that_only_one_side_can_do() {
        let later = Capabilities::from_bits(1 << 63) | Capabilities::STATE_FORM;
        let agreed = Agreed::from_hello(&hello(4, later)).unwrap();
        assert!(agreed.has(Capabilities::STATE_FORM));
        assert!(!agreed.has(Capabilities::ANY_STRIPE));
        assert!(!agreed.has(Capabilities::from_bits(1 << 63)));
    }

    #[test]
    fn a_welcome_that_was_not_asked_for_is_refused() {
        let agreed = Agreed::from_hello(&hello(4, Capabilities::OURS)).unwrap();
        for version in [0, VERSION + 1] {
            let wrong = Welcome {
                version,
                ..welcome(agreed)
            };
            Agreed::from_welcome(&wrong).unwrap_err();
        }
        let nameless = Welcome {
            host: None,
            ..welcome(agreed)
        };
        Agreed::from_welcome(&nameless).unwrap_err();
    }
}
