//! What names of hosts stand for, looked up here and not in the process of a VM.

use std::net::SocketAddr;
use std::time::Duration;

use migration::address::{Address, AddressError};
use migration::endpoint::Endpoint;
use migration::observation::{Observation, Side};

use control::exit::local;

/// How long the host's resolver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to listen.
///
/// # Errors
/// `usage.listen` for what is no address, `receive.listen` for a name that stands for none.
pub(super) fn to_listen_at(text: &str) -> Result<Endpoint, Observation> {
    let address: Address = text
        .parse()
        .map_err(|e: AddressError| local("usage.listen", e.to_string()))?;
    Endpoint::look_up(address, PATIENCE).map_err(|e| {
        let why = Observation::from_error(Side::Client, "receive.listen", &e);
        local("receive.listen", format!("cannot listen at {text}")).caused_by(why)
    })
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
