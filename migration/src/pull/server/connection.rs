//! One connection: who it is, what it asks, and what it is answered.

use std::sync::Arc;
use std::time::Instant;

use super::queue::{Asked, Queue};
use super::shared::{SLICE, Shared};
use super::volume::Volume;
use crate::error::Error;
use crate::id::PullSecret;
use crate::places::{Admission, Place};
use crate::pull::line::Line;
use crate::threads::{self, ThreadKind};
use crate::transport::{Connection, Within};
use crate::wire::agreed::Agreed;
use crate::wire::hello::{HELLO_LEN, Hello, Role};
use crate::wire::pull::{End, Frame, MAX_LANES, PullHeader, Refusal, VolumeList};

/// A connection that has just come, with its place.
pub(super) struct Newcomer<'a> {
    pub connection: Arc<dyn Connection>,
    pub place: Place<'a>,
}

/// Hears who it is, and serves it until it ends.
pub(super) fn hear(shared: &Shared, newcomer: Newcomer<'_>) -> Result<(), Error> {
    shared.hear(newcomer)
}

impl Shared {
    fn hear(&self, newcomer: Newcomer<'_>) -> Result<(), Error> {
        let Newcomer {
            connection,
            mut place,
        } = newcomer;
        let mut hello = [0; HELLO_LEN];
        connection
            .receive_within(&mut hello, Within::time(self.options.hello))
            .map_err(Error::link("reading a hello"))?;
        let hello = Hello::decode(&hello)?;
        let line = Line::new(connection, End::Client, self.options.still)?;
        let refuse = |why| line.send(&Frame::Refused(why), &[]);
        if !self.knows(&hello) {
            return refuse(Refusal::Stranger);
        }
        if Agreed::from_hello(&hello).is_none() {
            return refuse(Refusal::Version);
        }
        match place.become_known() {
            Admission::Known => self.serve_line(&line),
            Admission::NoPlace => refuse(Refusal::Busy),
            Admission::Ended => Err(Error::Protocol("the hello came late".into())),
        }
    }

    /// Whether it is for what is served here, from who was told the secret.
    fn knows(&self, hello: &Hello) -> bool {
        let is_pull = matches!(hello.role, Role::Pull { lane } if lane < MAX_LANES);
        is_pull && hello.id == self.id && PullSecret(hello.token) == self.secret
    }

    fn serve_line(&self, line: &Line) -> Result<(), Error> {
        let volumes = self.volumes.iter().map(|volume| volume.told().clone());
        let list = VolumeList {
            volumes: volumes.collect(),
        };
        let list = list.encode()?;
        let len = list.len() as u32;
        line.send(&Frame::Volumes { len }, &list)?;
        let queue = self.queues.join();
        std::thread::scope(|scope| {
            let answers = || {
                if let Err(error) = self.answer_all(line, &queue) {
                    tracing::debug!(%error, "a connection cannot be answered any more");
                }
                queue.close();
            };
            let started = threads::start(scope, ThreadKind::Serve, "answers", answers);
            let heard = started.and_then(|_| self.hear_all(line, &queue));
            queue.close();
            line.end();
            heard
        })
    }

    /// Hears frames until the connection ends.
    fn hear_all(&self, line: &Line, queue: &Queue<'_>) -> Result<(), Error> {
        let mut heard = Instant::now();
        loop {
            if self.is_stopped() || queue.is_closed() {
                return Ok(());
            }
            if line.wait(SLICE)? {
                let (header, frame) = line.receive()?;
                self.hear_frame(line, queue, &header, frame)?;
                heard = Instant::now();
            } else if heard.elapsed() > self.options.silence {
                return Err(Error::PeerSilent(self.options.silence));
            }
        }
    }

    fn hear_frame(
        &self,
        line: &Line,
        queue: &Queue<'_>,
        header: &PullHeader,
        frame: Frame,
    ) -> Result<(), Error> {
        match frame {
            Frame::Present(units) => {
                let volume = self.volume(units.volume)?;
                volume.check(&units)?;
                let map = line.receive_payload(header, &frame)?;
                volume.hear_map(&units, &map)
            }
            Frame::Request {
                number,
                units,
                class,
            } => {
                self.volume(units.volume)?.check_held(&units)?;
                queue.put(Asked {
                    number,
                    units,
                    class,
                })
            }
            Frame::AskData { number, units } => {
                let volume = self.volume(units.volume)?;
                volume.check(&units)?;
                let map = volume.data(&units).map_err(Error::vm("map a disk"))?;
                line.send(&Frame::Data { number, units }, &map)
            }
            Frame::AskHeld { number, units } => {
                let map = self.volume(units.volume)?.held(&units)?;
                line.send(&Frame::Held { number, units }, &map)
            }
            Frame::Finished { volume } => {
                let released = self.volume(volume)?.release();
                released.map_err(Error::vm("record that a disk is released"))?;
                line.send(&Frame::Released { volume }, &[])
            }
            Frame::Ping { number } => line.send(&Frame::Pong { number }, &[]),
            // Whoever decoded it has seen that it is not a client's.
            _ => Err(Error::Protocol("a client answers".into())),
        }
    }

    /// The volume of a number that a peer has said.
    fn volume(&self, number: u16) -> Result<&Volume, Error> {
        let volume = self.volumes.get(usize::from(number));
        volume.ok_or_else(|| Error::Protocol(format!("there is no volume {number}")))
    }

    /// Answers requests until the connection ends.
    fn answer_all(&self, line: &Line, queue: &Queue<'_>) -> Result<(), Error> {
        let mut bytes = Vec::new();
        while let Some(turn) = queue.next() {
            let Asked { number, units, .. } = turn.asked;
            let volume = self.volume(units.volume)?;
            let frame = volume.answer(number, units, &mut bytes);
            self.queues.count(bytes.len());
            line.send_framed(&frame, &mut bytes)?;
            if matches!(frame, Frame::Answer { .. }) {
                volume.answered(&units);
            }
        }
        Ok(())
    }
}
