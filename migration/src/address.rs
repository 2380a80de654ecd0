//! Where a destination listens: `HOST:PORT`, `unix:PATH` or `fd:N`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes that a unix socket address holds beside its terminating zero.
const MAX_PATH: usize = 107;

/// Address of a migration destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; an IPv6 host stands in brackets.
    Tcp {
        /// Name or number, without brackets.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `fd:N`: an inherited socket that listens already.
    Fd(i32),
}

/// An address that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address: expected HOST:PORT, unix:PATH or fd:N")]
pub struct AddressError {
    /// What was given.
    pub text: String,
}

impl Address {
    /// The address, if a migration can go there: to a port, or to a socket file.
    ///
    /// # Errors
    /// [`AddressError`] for port 0 and for `fd:N`, which can only listen.
    pub fn as_destination(self) -> Result<Self, AddressError> {
        match self {
            Self::Fd(_) | Self::Tcp { port: 0, .. } => Err(AddressError {
                text: self.to_string(),
            }),
            Self::Tcp { .. } | Self::Unix(_) => Ok(self),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError {
            text: text.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = !path.is_empty() && path.len() <= MAX_PATH && !path.contains('\0');
            return if fits {
                Ok(Self::Unix(path.into()))
            } else {
                Err(wrong())
            };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            let fd: i32 = number.parse().map_err(|_| wrong())?;
            // The standard streams are no listening sockets.
            return if fd < 3 {
                Err(wrong())
            } else {
                Ok(Self::Fd(fd))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        // Without brackets, `::1:80` would silently mean another host.
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if host.is_empty()
            || host.chars().any(odd)
            || host.contains(['[', ']'])
            || (bare.is_none() && host.contains(':'))
        {
            return Err(wrong());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for text in [
            "10.0.0.1:4444",
            "[::1]:80",
            "host.example:0",
            "unix:/run/x.sock",
            "fd:3",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in [
            "",
            "host",
            "host:",
            ":80",
            "::1:80",
            "host:99999",
            "unix:",
            "fd:-1",
            "fd:1",
            "[::1:7",
            "[][]:7",
            "a]:7",
            "a b:7",
            "fd:x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_destination_has_a_port() {
        for (text, fits) in [
            ("h:1", true),
            ("unix:/s", true),
            ("h:0", false),
            ("fd:3", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.as_destination().is_ok(), fits, "{text}");
        }
    }
}
