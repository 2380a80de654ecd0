//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;
use rustix::process::Uid;

/// Whether the other end of a connected unix socket was opened by `user`, or root (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// What the kernel says of the socket.
pub fn is_of(end: impl AsFd, user: Uid) -> io::Result<bool> {
    let peer = socket_peercred(end)?.uid;
    Ok(peer.is_root() || peer == user)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_of_another_user_is_told_from_an_own_one() {
        let (end, _other) = UnixStream::pair().unwrap();
        let own = rustix::process::geteuid();
        assert!(is_of(&end, own).unwrap());
        let stranger = Uid::from_raw(own.as_raw() + 1);
        assert_eq!(is_of(&end, stranger).unwrap(), own.is_root());
    }
}
