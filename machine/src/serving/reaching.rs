//! Whether this host reaches who serves the disks of a guest that comes in, before the guest comes.
//!
//! Who serves them listens by then and takes no connection in: that one is made is all that can be seen, and nothing is said by it.
//! Nobody else is connected to than the host that the guest comes from: which addresses others have is for no source to find
//! out by way of this host.

use std::io;
use std::thread::Builder;
use std::time::{Duration, Instant};

use migration::address::Address;
use migration::endpoint::{Endpoint, RemoteHost};
use migration::observation::{Observation, Side};
use migration::os;
use migration::transport::socket::SocketConnect;
use migration::transport::{Connect, Patience};

use crate::disks::in_part::ServedBy;
use crate::threads::{self, ThreadKind};

/// How long it may take to reach all of them; the source hears of it in time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to each of `servers` that is at `source`, and says nothing. What is to be told of those that are elsewhere, which were
/// not tried.
///
/// # Errors
/// `negotiate.server` when one cannot be reached.
pub(crate) fn reach(
    servers: &[&ServedBy],
    source: RemoteHost,
) -> Result<Vec<Observation>, Observation> {
    let (mut tried, mut untried) = (Vec::new(), Vec::new());
    for server in servers {
        let address: Option<Address> = server.served_at.parse().ok();
        match address.and_then(Endpoint::numeric) {
            Some(endpoint) if source.is_at(&endpoint) => {
                let ServedBy {
                    disk, served_at, ..
                } = server;
                tried.push((disk.clone(), served_at.clone(), endpoint));
            }
            Some(_) | None => untried.push(not_tried(server)),
        }
    }
    // Most are one.
    tried.dedup_by(|one, other| one.1 == other.1);
    if !tried.is_empty() {
        // The thread that takes a guest in may connect to nobody.
        let started = Builder::new().name("reach".into()).spawn(move || {
            threads::begin(ThreadKind::Pull);
            let deadline = Instant::now() + PATIENCE;
            let mut all = tried.into_iter();
            all.try_for_each(|(disk, at, endpoint)| {
                connect(endpoint, deadline).map_err(|why| unreachable(&disk, &at, &why))
            })
        });
        let ended = started.map(std::thread::JoinHandle::join);
        ended
            .map_err(|e| {
                Observation::from_error(Side::Destination, "machine.thread", &os::no_thread(e))
            })?
            .unwrap_or_else(|_| {
                let why = io::Error::other("the attempt ended unexpectedly");
                Err(unreachable("", "", &why))
            })?;
    }
    Ok(untried)
}

fn connect(endpoint: Endpoint, deadline: Instant) -> io::Result<()> {
    let patience = Patience {
        timeout: deadline.saturating_duration_since(Instant::now()),
        give_up: &|| false,
    };
    SocketConnect::new(endpoint)?.connect(patience).map(drop)
}

fn unreachable(disk: &str, at: &str, why: &io::Error) -> Observation {
    let message = format!(
        "this host does not reach who is to serve disk {disk} at {at} when the guest is here: let it through there, or say at the \
         source by --serve-at where it is reached"
    );
    Observation::new(Side::Destination, "negotiate.server", message)
        .caused_by(Observation::from_error(Side::Destination, "disk.io", why))
}

fn not_tried(server: &ServedBy) -> Observation {
    let message = format!(
        "disk {} is served at {}, which is not where the guest came from: whether this host reaches that was not tried before it \
         came",
        server.disk, server.served_at
    );
    Observation::new(Side::Destination, "disk.server-untried", message)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use migration::PullSecret;
    use migration::disk_modes::DiskPull;
    use migration::source_loss::OnSourceLoss;

    use super::*;

    fn served(at: &str) -> ServedBy {
        ServedBy {
            behind: Vec::new(),
            format: "raw".into(),
            served_at: at.into(),
            migration: "07".repeat(16),
            secret: PullSecret([7; 16]),
            disk: "data".into(),
            pull: DiskPull::Background,
            on_source_loss: OnSourceLoss::Pause,
        }
    }

    #[test]
    fn a_server_that_takes_no_connection_in_yet_is_reached() {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("s");
        let _unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = [
            tcp.local_addr().unwrap().to_string(),
            format!("unix:{}", path.display()),
        ];
        let servers = at.map(|at| served(&at));
        let all: Vec<_> = servers.iter().collect();
        assert_eq!(reach(&all, RemoteHost::Here).unwrap(), []);
        // It was, and said nothing.
        let (came, _) = tcp.accept().unwrap();
        assert_eq!(io::copy(&mut &came, &mut io::sink()).unwrap(), 0);
    }

    #[test]
    fn a_server_that_nobody_has_is_told_by_its_address() {
        let at = {
            let closed = TcpListener::bind("127.0.0.1:0").unwrap();
            closed.local_addr().unwrap().to_string()
        };
        let refused = reach(&[&served(&at)], RemoteHost::Here).unwrap_err();
        assert_eq!(refused.id, "negotiate.server");
        assert!(refused.message.contains(&at), "{refused}");
        let refused = reach(&[&served("unix:/nowhere/s")], RemoteHost::Here).unwrap_err();
        assert_eq!(refused.id, "negotiate.server");
    }

    #[test]
    fn nobody_is_connected_to_but_the_host_that_the_guest_comes_from() {
        let third = TcpListener::bind("127.0.0.1:0").unwrap();
        third.set_nonblocking(true).unwrap();
        let server = served(&third.local_addr().unwrap().to_string());
        let source = RemoteHost::from("10.0.0.1:7".parse().unwrap());
        for source in [source, RemoteHost::Unknown] {
            let told = reach(&[&server], source).unwrap();
            assert_eq!(told[0].id, "disk.server-untried");
            let came = third.accept().map(drop).map_err(|e| e.kind());
            assert_eq!(came, Err(io::ErrorKind::WouldBlock));
        }
    }
}
