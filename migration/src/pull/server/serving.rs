//! The server as its user has it: takes connections in until nobody needs it any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Instant;

use super::connection::{self, Newcomer};
use super::queue::Queues;
use super::shared::{SLICE, Shared};
use super::source::PullSource;
use super::terms::{Options, Served};
use super::volume::{ServedVolume, Volume};
use crate::error::Error;
use crate::id::{MigrationId, PullSecret};
use crate::observation::Side;
use crate::os;
use crate::places::{Evicted, Places};
use crate::threads::{self, ThreadKind};
use crate::transport::{Connection, Listen};

/// A server of volumes, to who knows its identifier and its secret.
pub struct PullServer {
    shared: Shared,
    places: Places,
}

impl PullServer {
    /// A server of `volumes`, which frames number in this order, to whom shows `id` and `secret`.
    pub fn new(
        volumes: Vec<Arc<dyn PullSource>>,
        id: MigrationId,
        secret: PullSecret,
        options: Options,
    ) -> Self {
        Self {
            shared: Shared {
                id,
                secret,
                volumes: volumes.into_iter().map(Volume::new).collect(),
                queues: Queues::new(options.rate),
                stop: AtomicBool::new(false),
                options,
            },
            places: Places::default(),
        }
    }

    /// What is told of each volume.
    pub fn status(&self) -> Vec<ServedVolume> {
        self.shared.volumes.iter().map(Volume::status).collect()
    }

    /// How many connections of the client there are.
    pub fn connections(&self) -> usize {
        self.shared.queues.connections()
    }

    /// Has [`PullServer::serve`] end soon.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Serves whoever connects until it is told to stop, or all volumes are released.
    ///
    /// # Errors
    /// When no connection can ever come again.
    pub fn serve(&self, listen: &dyn Listen) -> Result<Served, Error> {
        let served = std::thread::scope(|scope| {
            let served = self.accept_all(listen, scope);
            self.stop();
            self.places.close();
            served
        });
        self.shared.stop.store(false, Ordering::Release);
        served
    }

    fn accept_all<'scope, 'env: 'scope>(
        &'env self,
        listen: &'env dyn Listen,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<Served, Error> {
        let mut released: Option<Instant> = None;
        while !self.shared.is_stopped() {
            if self.shared.volumes.iter().all(Volume::is_released) {
                // A client that has not heard the answer asks again.
                let since = released.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.shared.options.linger {
                    return Ok(Served::Released);
                }
            }
            match listen.accept(SLICE) {
                Ok(Some(connection)) => self.take_in(connection.into(), scope),
                Ok(None) => {}
                // Out of descriptors or memory: that may pass.
                Err(error) if os::is_passing(&error) => std::thread::sleep(SLICE),
                Err(source) => {
                    let address = listen.address();
                    return Err(Error::Accept { address, source });
                }
            }
        }
        Ok(Served::Stopped)
    }

    /// Hears a connection on a thread of its own: one that says nothing keeps nobody waiting.
    fn take_in<'scope, 'env: 'scope>(
        &'env self,
        connection: Arc<dyn Connection>,
        scope: &'scope Scope<'scope, 'env>,
    ) {
        let Some((place, evicted)) = self.places.take(&connection) else {
            return;
        };
        if let Some(Evicted(oldest)) = evicted {
            oldest.shutdown();
        }
        let newcomer = Newcomer { connection, place };
        let hears = move || {
            let heard = catch_unwind(AssertUnwindSafe(|| {
                connection::hear(&self.shared, newcomer)
            }));
            if let Err(error) = heard.unwrap_or(Err(Error::Worker)) {
                tracing::debug!("a connection ended: {}", error.observe(Side::Source));
            }
        };
        if let Err(error) = threads::start(scope, ThreadKind::Serve, "a connection", hears) {
            // It was dropped with its connection, and its client comes again.
            tracing::warn!("{}", error.observe(Side::Source));
        }
    }
}
