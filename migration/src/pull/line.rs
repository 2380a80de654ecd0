//! A connection that carries frames of a pull.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::error::Error;
use crate::transport::{Connection, Within};
use crate::wire::hello::Hello;
use crate::wire::pull::{End, Frame, PULL_LEN, PullHeader};

/// One end of it. Frames are sent by any thread, and received by one.
pub(super) struct Line {
    connection: Arc<dyn Connection>,
    peer: End,
    /// How long a frame that has begun may stand still.
    still: Duration,
    sending: Mutex<()>,
}

impl Line {
    /// A connection whose other end is `peer`.
    ///
    /// # Errors
    /// When it refuses a time-out.
    pub fn new(connection: Arc<dyn Connection>, peer: End, still: Duration) -> Result<Self, Error> {
        connection
            .set_io_timeout(still)
            .map_err(Error::link("setting up a connection"))?;
        Ok(Self {
            connection,
            peer,
            still,
            sending: Mutex::default(),
        })
    }

    /// Sends the first bytes of the connection.
    pub fn say_hello(&self, hello: &Hello) -> Result<(), Error> {
        self.send_bytes(&hello.encode())
    }

    /// Sends a frame.
    pub fn send(&self, frame: &Frame, payload: &[u8]) -> Result<(), Error> {
        let mut bytes = vec![0; PULL_LEN];
        bytes.extend_from_slice(payload);
        self.send_framed(frame, &mut bytes)
    }

    /// Sends a frame whose payload lies in `bytes` behind room for its header.
    pub fn send_framed(&self, frame: &Frame, bytes: &mut [u8]) -> Result<(), Error> {
        let (room, payload) = bytes.split_at_mut(PULL_LEN);
        room.copy_from_slice(PullHeader::new(frame, payload).as_bytes());
        self.send_bytes(bytes)
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let within = Within::bytes(bytes.len(), self.still);
        let sent = self.connection.send_within(bytes, within);
        if sent.is_err() {
            // Half a frame may have gone, and nothing can follow it.
            self.connection.shutdown();
        }
        sent.map_err(Error::link("sending a frame of a pull"))
    }

    /// Whether a frame comes within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let readable = self.connection.wait_readable(timeout);
        readable.map_err(Error::link("waiting for a frame of a pull"))
    }

    /// Receives the header of a frame, and what it says.
    pub fn receive(&self) -> Result<(PullHeader, Frame), Error> {
        let mut header = [0; PULL_LEN];
        self.receive_bytes(&mut header)?;
        let header: PullHeader = zerocopy::transmute!(header);
        let frame = header.frame(self.peer)?;
        if frame.payload() == 0 {
            header.verify(&[])?;
        }
        Ok((header, frame))
    }

    /// Receives the payload of a frame that may have one here.
    pub fn receive_payload(&self, header: &PullHeader, frame: &Frame) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0; frame.payload()];
        self.receive_bytes(&mut payload)?;
        header.verify(&payload)?;
        Ok(payload)
    }

    fn receive_bytes(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let within = Within::bytes(bytes.len(), self.still);
        let received = self.connection.receive_within(bytes, within);
        received.map_err(Error::link("receiving a frame of a pull"))
    }

    /// Ends the connection.
    pub fn end(&self) {
        self.connection.shutdown();
    }
}
