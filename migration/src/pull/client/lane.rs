//! The thread of one connection: makes it, hears what comes on it, and makes it again when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::desk::{Desk, Question, Reply};
use super::terms::{Options, Presence, Returned, Wanted};
use crate::error::Error;
use crate::id::{MigrationId, PullSecret};
use crate::observation::Side;
use crate::pull::line::Line;
use crate::pull::maps;
use crate::transport::{Connect, Patience};
use crate::wire::hello::{Hello, Role};
use crate::wire::pull::{
    End, Frame, PullHeader, PulledVolume, Refusal, Units, VolumeList, map_len,
};

/// Waits are cut into pieces of this length to see whether they are still wanted.
const SLICE: Duration = Duration::from_millis(20);
/// Shortest and longest pause before a connection is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// What all lanes of a client share.
pub(super) struct Client {
    pub connect: Box<dyn Connect>,
    pub id: MigrationId,
    pub secret: PullSecret,
    pub wanted: Vec<Wanted>,
    pub presence: Arc<dyn Presence>,
    pub options: Options,
    pub desk: Desk,
    pub returned: Returned,
}

/// One lane of it.
pub(super) struct Lane {
    pub client: Arc<Client>,
    pub number: usize,
}

/// How a connection went before it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Went {
    /// Nothing was answered on it.
    Badly,
    /// Something was.
    Well,
}

impl Lane {
    /// Has a connection until the client is stopped.
    pub fn run(self) {
        let mut pause = PAUSE.0;
        while !self.desk().is_stopped() {
            let (went, error) = self.connection();
            let why = error.observe(Side::Destination);
            tracing::debug!(lane = self.number, "the link of a pull is lost: {why}");
            self.desk().down(self.number, why.to_string());
            if went == Went::Well {
                pause = PAUSE.0;
            }
            self.desk().rest(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    fn desk(&self) -> &Desk {
        &self.client.desk
    }

    /// Makes a connection and hears it; why it ended.
    fn connection(&self) -> (Went, Error) {
        let mut went = Went::Badly;
        let error = match self.connect() {
            Err(error) => error,
            Ok((line, numbers)) => {
                let told = self.tell(&line, &numbers);
                let error = told.and_then(|()| {
                    self.desk().up(self.number, &line, numbers.clone());
                    self.client.returned.tell();
                    self.hear_all(&line, &numbers, &mut went)
                });
                line.end();
                match error {
                    Err(error) => error,
                    Ok(()) => Error::Cancelled,
                }
            }
        };
        (went, error)
    }

    fn connect(&self) -> Result<(Arc<Line>, Arc<[u16]>), Error> {
        let client = &*self.client;
        let patience = Patience {
            timeout: client.options.still,
            give_up: &|| client.desk.is_stopped(),
        };
        let connection = client.connect.connect(patience);
        let connection = connection.map_err(|source| Error::Connect {
            address: client.connect.address(),
            source,
        })?;
        let line = Arc::new(Line::new(
            connection.into(),
            End::Server,
            client.options.still,
        )?);
        let lane = self.number as u16;
        line.say_hello(&Hello::new(Role::Pull { lane }, client.id, client.secret.0))?;
        self.await_frame(&line)?;
        let (header, frame) = line.receive()?;
        let numbers = match frame {
            Frame::Volumes { .. } => {
                let payload = line.receive_payload(&header, &frame)?;
                self.find(&VolumeList::decode(&payload)?.volumes)?
            }
            Frame::Refused(why) => return Err(refused(why)),
            _ => return Err(Error::Protocol("a server does not say what it has".into())),
        };
        Ok((line, numbers))
    }

    /// Waits for the first frame of a connection.
    fn await_frame(&self, line: &Line) -> Result<(), Error> {
        let began = Instant::now();
        while !line.wait(SLICE)? {
            if self.desk().is_stopped() {
                return Err(Error::Cancelled);
            }
            if began.elapsed() > self.client.options.silence {
                return Err(Error::PeerSilent(self.client.options.silence));
            }
        }
        Ok(())
    }

    /// How the server numbers what is wanted.
    fn find(&self, volumes: &[PulledVolume]) -> Result<Arc<[u16]>, Error> {
        let wanted = self.client.wanted.iter().map(|wanted| {
            let is_same = |volume: &PulledVolume| {
                (&volume.id, volume.size, volume.unit) == (&wanted.id, wanted.size, wanted.unit)
            };
            let number = volumes.iter().position(is_same).ok_or(Error::Volumes)?;
            Ok(number as u16)
        });
        wanted.collect()
    }

    /// Says what is here already.
    fn tell(&self, line: &Line, numbers: &[u16]) -> Result<(), Error> {
        if self.number > 0 {
            return Ok(());
        }
        for (volume, (wanted, &number)) in self.client.wanted.iter().zip(numbers).enumerate() {
            for piece in maps::pieces(number, wanted.units()) {
                let mut map = vec![0; map_len(piece.count)];
                let units = piece.range().unwrap_or_default();
                for unit in units.clone() {
                    if self.client.presence.is_present(volume, unit) {
                        let at = unit - units.start;
                        maps::set(&mut map, at..at + 1);
                    }
                }
                line.send(&Frame::Present(piece), &map)?;
            }
        }
        Ok(())
    }

    /// Hears frames until the connection is lost, or the client is stopped.
    fn hear_all(&self, line: &Line, numbers: &[u16], went: &mut Went) -> Result<(), Error> {
        let options = &self.client.options;
        let (mut heard, mut asked) = (Instant::now(), Instant::now());
        let mut pings = Pings::default();
        // What is finished from here on is told by whoever finishes it.
        let finished = match self.number {
            0 => self.desk().finished(),
            _ => Vec::new(),
        };
        for volume in finished {
            let volume = numbers[volume];
            line.send(&Frame::Finished { volume }, &[])?;
        }
        while !self.desk().is_stopped() {
            if line.wait(SLICE)? {
                let (header, frame) = line.receive()?;
                self.hear(line, numbers, &header, frame, &mut pings)?;
                *went = Went::Well;
                heard = Instant::now();
            } else if heard.elapsed() > options.silence {
                return Err(Error::PeerSilent(options.silence));
            }
            if self.desk().is_late(self.number, options.answer) {
                return Err(Error::NoAnswer {
                    operation: "waiting for what was asked for",
                    waited: options.answer,
                });
            }
            if asked.elapsed() > options.silence / 4 {
                asked = Instant::now();
                line.send(&pings.next(), &[])?;
            }
        }
        Ok(())
    }

    fn hear(
        &self,
        line: &Line,
        numbers: &[u16],
        header: &PullHeader,
        frame: Frame,
        pings: &mut Pings,
    ) -> Result<(), Error> {
        let desk = self.desk();
        match frame {
            Frame::Answer {
                number,
                units,
                zeroes,
                len,
            } => {
                let question = desk.check(self.number, number, Some(units))?;
                let is_of_units = matches!(question, Question::Units(_));
                if !is_of_units || self.expected(numbers, &units, zeroes) != len {
                    return Err(Error::Protocol(format!(
                        "an answer to {number} is not what was asked for"
                    )));
                }
                let bytes = match len {
                    0 => Vec::new(),
                    _ => line.receive_payload(header, &frame)?,
                };
                desk.reply(number, Reply::Units { zeroes, bytes });
                Ok(())
            }
            Frame::Data { number, units } | Frame::Held { number, units } => {
                let answers = match frame {
                    Frame::Data { .. } => Question::Data,
                    _ => Question::Held,
                };
                if desk.check(self.number, number, Some(units))? != answers {
                    return Err(Error::Protocol(format!(
                        "an answer to {number} is not what was asked for"
                    )));
                }
                let map = line.receive_payload(header, &frame)?;
                maps::check(&map, units.count)?;
                desk.reply(number, Reply::Map(map));
                Ok(())
            }
            Frame::Gone { number, why } => {
                desk.check(self.number, number, None)?;
                desk.gone(number, why);
                Ok(())
            }
            Frame::Released { volume } => {
                let own = numbers.iter().position(|number| *number == volume);
                desk.released(own.ok_or(Error::Volumes)?)
            }
            Frame::Pong { number } => pings.answered(number),
            Frame::Refused(why) => Err(refused(why)),
            _ => Err(Error::Protocol("a server says twice what it has".into())),
        }
    }

    /// Bytes of `units` without those that read as zeroes.
    fn expected(&self, numbers: &[u16], units: &Units, zeroes: u32) -> u32 {
        let own = numbers.iter().position(|number| *number == units.volume);
        let Some(wanted) = own.and_then(|own| self.client.wanted.get(own)) else {
            return 0;
        };
        let rest = (0..units.count).filter(|index| zeroes & 1 << index == 0);
        rest.map(|index| wanted.len_of(units.first + u64::from(index)))
            .sum()
    }
}

/// Questions whether the server is there, of which one waits at most.
#[derive(Default)]
struct Pings {
    last: u32,
    answered: u32,
}

impl Pings {
    fn next(&mut self) -> Frame {
        self.last = self.last.wrapping_add(1);
        Frame::Ping { number: self.last }
    }

    fn answered(&mut self, number: u32) -> Result<(), Error> {
        if number == self.answered.wrapping_add(1) && self.answered != self.last {
            self.answered = number;
            return Ok(());
        }
        Err(Error::Protocol("a ping was answered that was none".into()))
    }
}

fn refused(why: Refusal) -> Error {
    Error::Protocol(
        match why {
            Refusal::Stranger => "the host serves nothing to who has this identifier and secret",
            Refusal::Busy => "the host has too many connections",
            Refusal::Version => "the host speaks another version of the protocol",
        }
        .into(),
    )
}
