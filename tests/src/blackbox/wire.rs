//! The protocol as `docs/protocol.md` describes it, written a second time: what a stranger needs to
//! play a peer that says the wrong thing in the right words.

use std::io::{Read, Write};

use serde_json::Value;

/// Length of a hello.
pub const HELLO_LEN: usize = 80;
/// Length of the header of a control frame.
pub const HEADER_LEN: usize = 24;

/// Kinds of control frames.
pub mod kind {
    /// Destination: go on.
    pub const WELCOME: u16 = 1;
    /// Source: the machine.
    pub const NEGOTIATE: u16 = 2;
    /// Destination: it fits.
    pub const NEGOTIATED: u16 = 3;
    /// Source: build it.
    pub const PREPARE: u16 = 4;
    /// Destination: it is built.
    pub const PREPARED: u16 = 5;
    /// Source: where memory holds data.
    pub const EXTENTS: u16 = 6;
    /// Source: no page follows after this pass.
    pub const LAST_PASS: u16 = 8;
    /// Source: the machine's state.
    pub const STATE: u16 = 9;
    /// Destination: loaded.
    pub const READY: u16 = 10;
    /// Source: run it.
    pub const COMMIT: u16 = 11;
    /// Destination: it runs.
    pub const COMMITTED: u16 = 12;
    /// Source: let go.
    pub const FINISH: u16 = 13;
    /// Either: it ends, for this reason.
    pub const FAILURE: u16 = 14;
    /// Destination: what became of the guest.
    pub const RESOLUTION: u16 = 17;
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Control frames.
    Control,
    /// Page batches.
    Data,
    /// The question after a lost answer.
    Resolve,
}

impl Role {
    fn number(self) -> u16 {
        match self {
            Self::Control => 1,
            Self::Data => 2,
            Self::Resolve => 3,
        }
    }
}

fn seal(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}

/// A hello whose version and token are the caller's.
pub fn hello(versions: (u16, u16), role: Role, id: [u8; 16], token: [u8; 16]) -> Vec<u8> {
    let mut bytes = b"vmm-migr".to_vec();
    for number in [versions.0, versions.1, role.number(), 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0; 8]);
    bytes.extend(id);
    bytes.extend(token);
    bytes.extend([0; 16]);
    let mut whole = bytes.clone();
    whole.extend([0; 8]);
    bytes.extend(seal(&[&whole]));
    assert_eq!(bytes.len(), HELLO_LEN, "length of a hello");
    bytes
}

/// Role in a hello, if it is one.
pub fn role_of(hello: &[u8]) -> Option<u16> {
    hello
        .starts_with(b"vmm-migr")
        .then(|| u16::from_le_bytes([hello[12], hello[13]]))
}

/// A control frame.
pub fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut header = b"vmmC".to_vec();
    header.extend(kind.to_le_bytes());
    header.extend([0; 2]);
    header.extend(
        u32::try_from(body.len())
            .expect("length of a frame")
            .to_le_bytes(),
    );
    header.extend([0; 4]);
    let mut whole = header.clone();
    whole.extend([0; 8]);
    header.extend(seal(&[&whole, body]));
    header.extend(body);
    header
}

/// A header that announces `length` bytes which never come.
pub fn header_only(kind: u16, length: u32) -> Vec<u8> {
    let mut header = b"vmmC".to_vec();
    header.extend(kind.to_le_bytes());
    header.extend([0; 2]);
    header.extend(length.to_le_bytes());
    header.extend([0; 12]);
    header
}

/// Kind and length of body in a header.
pub fn kind_and_length(header: &[u8; HEADER_LEN]) -> (u16, usize) {
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    (u16::from_le_bytes([header[4], header[5]]), length as usize)
}

/// A page batch of one range whose payload is `payload`.
pub fn batch(pass: u32, gpa: u64, pages: u32, payload: &[u8]) -> Vec<u8> {
    let mut range = gpa.to_le_bytes().to_vec();
    range.extend(pages.to_le_bytes());
    range.extend(u16::from(!payload.is_empty()).to_le_bytes());
    range.extend([0; 2]);
    range.extend(
        u32::try_from(payload.len())
            .expect("length of a payload")
            .to_le_bytes(),
    );
    range.extend([0; 4]);
    let mut header = b"vmmP".to_vec();
    header.extend(1_u16.to_le_bytes());
    header.extend([0; 2]);
    header.extend(pass.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend((payload.len() as u64).to_le_bytes());
    let mut whole = header.clone();
    whole.extend([0; 8]);
    header.extend(seal(&[&whole, &range]));
    header.extend(range);
    header.extend(payload);
    header
}

/// A control connection played by hand.
pub struct Peer<S>(pub S);

impl<S: Read + Write> Peer<S> {
    /// Sends bytes; a peer that has hung up already is no failure of the caller.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next frame that is no keep-alive; `None` when the connection ends.
    pub fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
        loop {
            let mut header = [0; HEADER_LEN];
            self.0.read_exact(&mut header).ok()?;
            let (kind, length) = kind_and_length(&header);
            let mut body = vec![0; length.min(64 << 20)];
            self.0.read_exact(&mut body).ok()?;
            // Pings and pongs.
            if !(15..=16).contains(&kind) {
                return Some((kind, body));
            }
        }
    }

    /// The next frame, which must be of this kind.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect(&mut self, wanted: u16) -> Value {
        let (kind, body) = self
            .receive()
            .unwrap_or_else(|| panic!("no frame {wanted}"));
        assert_eq!(kind, wanted, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap_or_default()
    }
}
