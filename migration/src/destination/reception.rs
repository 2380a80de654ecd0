//! Who may come in: reads the hello of each connection and passes on those of the migration.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::Options;
use crate::error::Error;
use crate::id::MigrationId;
use crate::journal::{Decision, Journal};
use crate::observation::{Observation, Side};
use crate::session::{Note, Session};
use crate::threads::{self, Role as ThreadRole};
use crate::transport::{Connection, Listen};
use crate::wire::VERSION;
use crate::wire::control::{Answer, Message, Resolution};
use crate::wire::hello::{HELLO_LEN, Hello, Role};

/// Connections that have not said yet what they want; more are refused.
const MAX_PENDING: usize = 32;
/// Waits are cut into pieces of this length to see whether they are still wanted.
const SLICE: Duration = Duration::from_millis(20);

/// A connection that may come in.
pub(super) enum Incoming {
    /// A migration begins.
    Control {
        connection: Box<dyn Connection>,
        id: MigrationId,
        /// Of the protocol, as both sides speak it.
        version: u16,
    },
    /// Nobody can come in any more.
    Closed(Error),
}

/// The migration under way.
struct Expected {
    id: MigrationId,
    /// What its data connections show, once it was given out, and where they go then.
    admission: Option<([u8; 16], Arc<Session>)>,
    /// Streams that came in already, one bit each.
    came: u64,
}

pub(super) struct Reception<'a> {
    listen: &'a dyn Listen,
    journal: &'a dyn Journal,
    options: &'a Options,
    /// Where connections go; `None` when only questions are answered.
    incoming: Option<Sender<Incoming>>,
    expected: Mutex<Option<Expected>>,
    /// Held while a commit is carried out, so that a question about it waits for how it went.
    handover: Mutex<()>,
    pending: AtomicUsize,
    stop: AtomicBool,
}

impl<'a> Reception<'a> {
    pub fn new(
        listen: &'a dyn Listen,
        journal: &'a dyn Journal,
        options: &'a Options,
        incoming: Option<Sender<Incoming>>,
    ) -> Self {
        Self {
            listen,
            journal,
            options,
            incoming,
            expected: Mutex::default(),
            handover: Mutex::default(),
            pending: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn expected(&self) -> MutexGuard<'_, Option<Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets data connections with `token` in to `session`.
    pub fn admit(&self, token: [u8; 16], session: &Arc<Session>) {
        if let Some(expected) = self.expected().as_mut() {
            expected.admission = Some((token, session.clone()));
        }
    }

    /// Lets another migration come in.
    pub fn end_session(&self) {
        *self.expected() = None;
    }

    /// Nobody is answered about the hand-over while the guard lives.
    pub fn hand_over(&self) -> MutexGuard<'_, ()> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stop_on_drop(&self) -> impl Drop {
        struct Stop<'s>(&'s AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        Stop(&self.stop)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Takes connections in until stopped; says so when that ends in any other way.
    pub fn run_guarded<'scope, 'env: 'scope>(&'env self, scope: &'scope Scope<'scope, 'env>) {
        if catch_unwind(AssertUnwindSafe(|| self.run(scope))).is_err()
            && let Some(incoming) = &self.incoming
        {
            let _ = incoming.send(Incoming::Closed(Error::Worker));
        }
    }

    /// Takes connections in until stopped.
    fn run<'scope, 'env: 'scope>(&'env self, scope: &'scope Scope<'scope, 'env>) {
        while !self.is_stopped() {
            if let Err(error) = self.accept_one(scope) {
                if let Some(incoming) = &self.incoming {
                    // Nobody left to tell when it is closing.
                    let _ = incoming.send(Incoming::Closed(error));
                }
                return;
            }
        }
    }

    /// Takes in one connection, if one comes soon, and hears it on a thread of its own: a stranger
    /// that says nothing keeps nobody waiting.
    pub fn accept_one<'scope, 'env: 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<(), Error> {
        let connection = match self.listen.accept(SLICE) {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(()),
            // Out of descriptors or memory: that may pass.
            Err(error) if is_passing(&error) => {
                std::thread::sleep(SLICE);
                return Ok(());
            }
            Err(source) => {
                return Err(Error::Accept {
                    address: self.listen.address(),
                    source,
                });
            }
        };
        if self.pending.fetch_add(1, Ordering::AcqRel) >= MAX_PENDING {
            self.pending.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        let connection = Arc::new(Mutex::new(Some(connection)));
        let hears = {
            let connection = connection.clone();
            move || self.hear_once(&connection)
        };
        if let Err(error) = threads::start(scope, ThreadRole::Reception, "a connection", hears) {
            // Then whoever comes next waits for this one.
            tracing::debug!("{}", error.observe(Side::Destination));
            self.hear_once(&connection);
        }
        Ok(())
    }

    /// Hears the connection, unless somebody else does.
    fn hear_once(&self, connection: &Mutex<Option<Box<dyn Connection>>>) {
        let connection = connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(connection) = connection else { return };
        let heard = catch_unwind(AssertUnwindSafe(|| self.hear(connection)));
        if let Err(error) = heard.unwrap_or(Err(Error::Worker)) {
            tracing::debug!("refused a connection: {}", error.observe(Side::Destination));
        }
        self.pending.fetch_sub(1, Ordering::AcqRel);
    }

    fn hear(&self, connection: Box<dyn Connection>) -> Result<(), Error> {
        let until = Instant::now() + self.options.hello_timeout;
        let setting_up = || Error::link("setting up a connection");
        // Short, as the whole hello comes at once; a slow stranger must not hold us up at the end.
        connection
            .set_io_timeout(Duration::from_millis(500))
            .map_err(setting_up())?;
        while !connection.wait_readable(SLICE).map_err(setting_up())? {
            if Instant::now() >= until || self.is_stopped() {
                return Err(Error::Protocol("the connection said nothing".into()));
            }
        }
        let mut hello = [0; HELLO_LEN];
        connection
            .receive(&mut hello, &[])
            .map_err(Error::link("reading a hello"))?;
        let hello = Hello::decode(&hello)?;
        connection
            .set_io_timeout(self.options.io_timeout)
            .map_err(setting_up())?;
        let Some(version) = hello.common_version() else {
            return refuse(
                &*connection,
                "migration.version",
                format!(
                    "this host speaks protocol version {VERSION}, the peer {} to {}",
                    hello.min_version, hello.version
                ),
            );
        };
        match hello.role {
            Role::Control => self.hear_control(connection, hello.id, version),
            Role::Data { stream } => self.hear_data(connection, &hello, stream),
            Role::Resolve => self.hear_question(&*connection, hello.id, version),
        }
    }

    fn hear_control(
        &self,
        connection: Box<dyn Connection>,
        id: MigrationId,
        version: u16,
    ) -> Result<(), Error> {
        let Some(incoming) = &self.incoming else {
            return refuse(
                &*connection,
                "migration.not-receiving",
                "this host takes no migration in now".into(),
            );
        };
        {
            let mut expected = self.expected();
            if expected.is_some() || self.is_stopped() {
                drop(expected);
                return refuse(
                    &*connection,
                    "migration.busy",
                    "another migration is coming in here".into(),
                );
            }
            *expected = Some(Expected {
                id,
                admission: None,
                came: 0,
            });
        }
        let _ = incoming.send(Incoming::Control {
            connection,
            id,
            version,
        });
        Ok(())
    }

    fn hear_data(
        &self,
        connection: Box<dyn Connection>,
        hello: &Hello,
        stream: u16,
    ) -> Result<(), Error> {
        let mut expected = self.expected();
        let bit = 1u64.checked_shl(u32::from(stream)).unwrap_or(0);
        let session = expected.as_mut().and_then(|expected| {
            let (token, session) = expected.admission.as_ref()?;
            let fits = expected.id == hello.id && *token == hello.token;
            if !fits || bit == 0 || expected.came & bit != 0 {
                return None;
            }
            expected.came |= bit;
            Some(session.clone())
        });
        match session {
            Some(session) => {
                session.note(Note::Data { stream, connection });
                Ok(())
            }
            None => Err(Error::Protocol(
                "a data connection that belongs to no migration".into(),
            )),
        }
    }

    fn hear_question(
        &self,
        connection: &dyn Connection,
        id: MigrationId,
        version: u16,
    ) -> Result<(), Error> {
        let answer = {
            let _settled = self.hand_over();
            answer(self.journal, id)
        };
        match answer {
            Ok(resolution) => {
                tracing::info!(%id, ?resolution, "answered a resolve");
                let host = (version > 1).then(|| self.journal.identity());
                let frame = Message::Resolution(Answer { resolution, host }).encode()?;
                connection
                    .send(&frame, &[])
                    .map_err(Error::link("answering a resolve"))
            }
            Err(error) => {
                let observation = error.observe(Side::Destination);
                let frame = Message::Failure(Box::new(observation)).encode()?;
                connection
                    .send(&frame, &[])
                    .map_err(Error::link("answering a resolve"))?;
                Err(error)
            }
        }
    }
}

/// Whether migration `id` was committed here; if not, it never will be.
fn answer(journal: &dyn Journal, id: MigrationId) -> Result<Resolution, Error> {
    Ok(match journal.decide(id, Decision::GiveUp)? {
        Decision::GiveUp => Resolution::NeverRan,
        Decision::Commit => journal.answer(id, Resolution::Ran)?,
    })
}

fn refuse(connection: &dyn Connection, id: &str, message: String) -> Result<(), Error> {
    let observation = Observation::new(Side::Destination, id, message);
    let frame = Message::Failure(Box::new(observation.clone())).encode()?;
    connection
        .send(&frame, &[])
        .map_err(Error::link("refusing a connection"))?;
    Err(Error::Peer(Box::new(observation)))
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EINTR)
    )
}
