//! Who may come in: reads the hello of each connection and passes on those of the migration.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use super::expected::Expected;
use super::options::Options;
use crate::error::Error;
use crate::id::MigrationId;
use crate::journal::{Decision, Journal};
use crate::observation::{Observation, Side};
use crate::os;
use crate::places::{Admission, Evicted, Place, Places};
use crate::session::{Note, Session};
use crate::threads::{self, ThreadKind};
use crate::transport::{Connection, Listen, Within};
use crate::wire::VERSION;
use crate::wire::agreed::Agreed;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::{Answer, Message, Resolution};
use crate::wire::hello::{HELLO_LEN, Hello, Role};

/// Questions that are looked out for.
const MAX_DOUBTED: usize = 16;
/// How long it may take to tell someone that there is no place.
const BUSY: Duration = Duration::from_millis(100);
const TOO_MANY: &str = "too many connections to this host are waiting for an answer";
/// Waits are cut into pieces of this length to see whether they are still wanted.
const SLICE: Duration = Duration::from_millis(20);

/// Who wants to give a guest.
pub(super) struct Peer {
    pub connection: Arc<dyn Connection>,
    pub id: MigrationId,
    pub agreed: Agreed,
}

/// A connection that may come in.
pub(super) enum Incoming {
    /// A migration begins.
    Control(Peer),
    /// Nobody can come in any more.
    Closed(Error),
}

pub(super) struct Reception<'a> {
    listen: &'a dyn Listen,
    journal: &'a dyn Journal,
    options: &'a Options,
    /// Where connections go; `None` when only questions are answered.
    incoming: Option<Sender<Incoming>>,
    /// The migration under way.
    expected: Mutex<Option<Expected>>,
    came_again: Condvar,
    /// Held while a commit is carried out, so that a question about it waits for how it went.
    handover: Mutex<()>,
    /// Migrations of which the commit may have been sent, until somebody has asked: the last few.
    doubted: Mutex<Vec<MigrationId>>,
    places: Places,
    stop: AtomicBool,
}

/// A connection that has just come, with its place.
struct Newcomer<'a> {
    connection: Arc<dyn Connection>,
    place: Place<'a>,
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
            came_again: Condvar::new(),
            handover: Mutex::default(),
            doubted: Mutex::default(),
            places: Places::default(),
            stop: AtomicBool::new(false),
        }
    }

    fn expected(&self) -> MutexGuard<'_, Option<Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Expected::admit`].
    pub fn admit(&self, token: [u8; 16], session: &Arc<Session>) {
        if let Some(expected) = self.expected().as_mut() {
            expected.admit(token, session);
        }
    }

    /// As [`Expected::let_come_again`].
    pub fn let_come_again(&self, agreed: Agreed) {
        if let Some(expected) = self.expected().as_mut() {
            expected.let_come_again(agreed);
        }
    }

    /// As [`Expected::end_coming_again`].
    pub fn end_coming_again(&self) {
        if let Some(expected) = self.expected().as_mut() {
            expected.end_coming_again();
        }
    }

    /// The connection on which the source of the migration under way has come again, if it does so within `patience`.
    pub fn wait_for_source(&self, patience: Duration) -> Option<Arc<dyn Connection>> {
        let none_yet = |expected: &mut Option<Expected>| {
            (expected.as_mut()).is_some_and(|expected| !expected.has_come_again())
        };
        let (mut expected, _) = self
            .came_again
            .wait_timeout_while(self.expected(), patience, none_yet)
            .unwrap_or_else(PoisonError::into_inner);
        expected.as_mut()?.take_again()
    }

    /// Lets another migration come in.
    pub fn end_session(&self) {
        *self.expected() = None;
    }

    /// Nobody is answered about the hand-over while the guard lives.
    pub fn hand_over(&self) -> MutexGuard<'_, ()> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubted(&self) -> MutexGuard<'_, Vec<MigrationId>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on looks out for a question about `id`.
    pub fn expect_question(&self, id: MigrationId) {
        let mut doubted = self.doubted();
        if doubted.len() >= MAX_DOUBTED {
            doubted.remove(0);
        }
        doubted.push(id);
    }

    /// Whether the question about `id` that was expected has come.
    pub fn was_asked(&self, id: MigrationId) -> bool {
        !self.doubted().contains(&id)
    }

    /// Takes nobody in any more once the guard is dropped; whoever has not said yet what it wants is not
    /// waited for.
    pub fn stop_on_drop(&self) -> impl Drop {
        struct Stop<'s, 'a>(&'s Reception<'a>);
        impl Drop for Stop<'_, '_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::Release);
                self.0.places.close();
            }
        }
        Stop(self)
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
            Err(error) if os::is_passing(&error) => {
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
        let connection: Arc<dyn Connection> = connection.into();
        let Some((place, evicted)) = self.places.take(&connection) else {
            return Ok(());
        };
        if let Some(Evicted(oldest)) = evicted {
            // Nothing was sent to it yet, so this does not wait.
            drop(refuse(&*oldest, BUSY, "migration.busy", TOO_MANY.into()));
            oldest.shutdown();
        }
        let newcomer = Arc::new(Mutex::new(Some(Newcomer { connection, place })));
        let hears = {
            let newcomer = newcomer.clone();
            move || self.hear_once(&newcomer)
        };
        if let Err(error) = threads::start(scope, ThreadKind::Reception, "a connection", hears) {
            // Then whoever comes next waits for this one.
            tracing::debug!("{}", error.observe(Side::Destination));
            self.hear_once(&newcomer);
        }
        Ok(())
    }

    /// Hears the connection, unless somebody else does.
    fn hear_once(&self, newcomer: &Mutex<Option<Newcomer<'_>>>) {
        let newcomer = newcomer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(newcomer) = newcomer else { return };
        let heard = catch_unwind(AssertUnwindSafe(|| self.hear(newcomer)));
        if let Err(error) = heard.unwrap_or(Err(Error::Worker)) {
            tracing::debug!("refused a connection: {}", error.observe(Side::Destination));
        }
    }

    fn hear(&self, newcomer: Newcomer<'_>) -> Result<(), Error> {
        let Newcomer {
            connection,
            mut place,
        } = newcomer;
        let mut hello = [0; HELLO_LEN];
        connection
            .receive_within(&mut hello, Within::time(self.options.hello_timeout))
            .map_err(Error::link("reading a hello"))?;
        let hello = Hello::decode(&hello)?;
        let patience = self.options.io_timeout;
        match place.become_known() {
            Admission::Known => {}
            Admission::NoPlace => {
                return refuse(&*connection, patience, "migration.busy", TOO_MANY.into());
            }
            Admission::Ended => return Err(Error::Protocol("the hello came late".into())),
        }
        connection
            .set_io_timeout(self.options.io_timeout)
            .map_err(Error::link("setting up a connection"))?;
        let Some(agreed) = Agreed::from_hello(&hello) else {
            return refuse(
                &*connection,
                patience,
                "migration.version",
                format!(
                    "this host speaks protocol version {VERSION}, the peer {} to {}",
                    hello.min_version, hello.version
                ),
            );
        };
        match hello.role {
            Role::Control => self.hear_control(connection, hello.id, agreed),
            Role::Data { stream } => self.hear_data(connection, &hello, stream),
            Role::Resolve => self.hear_question(&*connection, hello.id, agreed),
            Role::Again => self.hear_again(connection, &hello, agreed),
            Role::Pull { .. } => Err(Error::Protocol(
                "a pull came where a guest is received".into(),
            )),
        }
    }

    fn hear_control(
        &self,
        connection: Arc<dyn Connection>,
        id: MigrationId,
        agreed: Agreed,
    ) -> Result<(), Error> {
        let Some(incoming) = &self.incoming else {
            return refuse(
                &*connection,
                self.options.io_timeout,
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
                    self.options.io_timeout,
                    "migration.busy",
                    "another migration is coming in here".into(),
                );
            }
            *expected = Some(Expected::new(id));
        }
        let _ = incoming.send(Incoming::Control(Peer {
            connection,
            id,
            agreed,
        }));
        Ok(())
    }

    fn hear_data(
        &self,
        connection: Arc<dyn Connection>,
        hello: &Hello,
        stream: u16,
    ) -> Result<(), Error> {
        let mut expected = self.expected();
        let session = expected.as_mut();
        match session.and_then(|expected| expected.data(hello, stream)) {
            Some(session) => {
                session.note(Note::Data { stream, connection });
                Ok(())
            }
            None => Err(Error::Protocol(
                "a data connection that belongs to no migration".into(),
            )),
        }
    }

    /// The source of the migration under way comes again; whoever else does is told the same, whatever it knows.
    fn hear_again(
        &self,
        connection: Arc<dyn Connection>,
        hello: &Hello,
        agreed: Agreed,
    ) -> Result<(), Error> {
        let is_let_in = (self.expected().as_mut())
            .is_some_and(|expected| expected.come_again(hello, agreed, connection.clone()));
        if is_let_in {
            self.came_again.notify_all();
            return Ok(());
        }
        refuse(
            &*connection,
            self.options.io_timeout,
            "migration.not-waiting",
            "this host does not wait for a new link of that migration".into(),
        )
    }

    fn hear_question(
        &self,
        connection: &dyn Connection,
        id: MigrationId,
        agreed: Agreed,
    ) -> Result<(), Error> {
        let answer = {
            let _settled = self.hand_over();
            answer(self.journal, id)
        };
        match answer {
            Ok(resolution) => {
                tracing::info!(%id, ?resolution, "answered a resolve");
                let host = agreed
                    .has(Capabilities::NAMES_HOST)
                    .then(|| self.journal.identity());
                let frame = Message::Resolution(Answer { resolution, host }).encode()?;
                connection
                    .send_within(&frame, Within::time(self.options.io_timeout))
                    .map_err(Error::link("answering a resolve"))?;
                self.doubted().retain(|doubted| *doubted != id);
                Ok(())
            }
            Err(error) => {
                let observation = error.observe(Side::Destination);
                let frame = Message::Failure(Box::new(observation)).encode()?;
                connection
                    .send_within(&frame, Within::time(self.options.io_timeout))
                    .map_err(Error::link("answering a resolve"))?;
                Err(error)
            }
        }
    }
}

/// Whether migration `id` was committed here; if not, it never will be. Asked about what is unknown here,
/// the journal records nothing: a source asks after it has sent its commit, for which there was room then.
fn answer(journal: &dyn Journal, id: MigrationId) -> Result<Resolution, Error> {
    Ok(match journal.decide(id, Decision::GiveUp)? {
        Decision::GiveUp => Resolution::NeverRan,
        Decision::Commit => journal.answer(id, Resolution::Ran)?,
    })
}

fn refuse(
    connection: &dyn Connection,
    patience: Duration,
    id: &str,
    message: String,
) -> Result<(), Error> {
    let observation = Observation::new(Side::Destination, id, message);
    let frame = Message::Failure(Box::new(observation.clone())).encode()?;
    connection
        .send_within(&frame, Within::time(patience))
        .map_err(Error::link("refusing a connection"))?;
    Err(Error::Peer(Box::new(observation)))
}
