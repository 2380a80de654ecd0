//! What names of hosts stand for, looked up here and not in the process of a VM.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use migration::address::{Address, AddressError};
use migration::endpoint::Endpoint;
use migration::observation::{Observation, Side};

use control::exit::local;

/// How long the host's resolver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to listen, of an address that may be relative to this folder.
///
/// # Errors
/// `usage.listen` for what is no address, `receive.listen` for a name that stands for none.
pub(super) fn to_listen_at(text: &str) -> Result<Endpoint, Observation> {
    let address: Address = from_anywhere(text)
        .parse()
        .map_err(|e: AddressError| local("usage.listen", e.to_string()))?;
    Endpoint::look_up(address, PATIENCE).map_err(|e| {
        let why = Observation::from_error(Side::Client, "receive.listen", &e);
        local("receive.listen", format!("cannot listen at {text}")).caused_by(why)
    })
}

/// The address `text` as whoever works in another folder understands it, as the process of a VM does.
pub(super) fn from_anywhere(text: &str) -> Cow<'_, str> {
    let relative = text
        .strip_prefix("unix:")
        .filter(|path| !path.is_empty() && !path.starts_with('/'));
    // Fails only without a folder to work in; then it is nowhere.
    match relative.map(std::path::absolute) {
        Some(Ok(path)) => format!("unix:{}", path.display()).into(),
        Some(Err(_)) | None => text.into(),
    }
}

/// What the name of the destination `text` stands for; empty where that needs no look-up.
///
/// # Errors
/// `usage.address` for what is no address, `migration.look-up` for a name that stands for none.
pub(super) fn of_destination(text: &str) -> Result<Vec<SocketAddr>, Observation> {
    let address: Address = text
        .parse()
        .map_err(|e: AddressError| local("usage.address", e.to_string()))?;
    if Endpoint::numeric(address.clone()).is_some() {
        return Ok(Vec::new());
    }
    match Endpoint::look_up(address, PATIENCE) {
        Ok(endpoint) => Ok(endpoint.sockets().to_vec()),
        Err(e) => {
            let why = Observation::from_error(Side::Client, "migration.look-up", &e);
            let what = format!("cannot find out what the name in {text} stands for");
            Err(local("migration.look-up", what).caused_by(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_as_it_is_seen_from_anywhere() {
        let here = std::env::current_dir().unwrap();
        let expected = format!("unix:{}", here.join("a/b").display());
        assert_eq!(from_anywhere("unix:a/b"), expected);
        for same in ["unix:/a/b", "unix:", "host:7", "[::1]:7", "fd:3", "a"] {
            assert_eq!(from_anywhere(same), same);
        }
    }
}
