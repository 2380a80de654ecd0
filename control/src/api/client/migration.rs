//! What is asked about migrations.

use hyper::Method;
use migration::observation::Observation;
use migration::progress::{Event, LimitChange};
use migration::request::MigrateRequest;

use super::connection::{Client, json};
use super::lines::Lines;
use crate::api::body::{Accepted, MIGRATION_ID, MigrationStarted, ResolveBody, StateAnswer};

impl Client {
    /// `POST /vm/migration`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate(&self, request: &MigrateRequest) -> Result<MigrationStarted, Observation> {
        self.call(Method::POST, "/vm/migration", Some(request))
            .await
    }

    /// `POST /vm/migration/cancel`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn cancel(&self) -> Result<Accepted, Observation> {
        self.call(Method::POST, "/vm/migration/cancel", None::<&()>)
            .await
    }

    /// `POST /vm/migration/resolve`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn resolve(&self, body: &ResolveBody) -> Result<StateAnswer, Observation> {
        self.call(Method::POST, "/vm/migration/resolve", Some(body))
            .await
    }

    /// `PATCH /vm/migration/limits`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn set_limits(&self, limits: &LimitChange) -> Result<Accepted, Observation> {
        self.call(Method::PATCH, "/vm/migration/limits", Some(limits))
            .await
    }

    /// `GET /vm/migration/events`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn events(&self) -> Result<Lines<Event>, Observation> {
        self.lines(Method::GET, "/vm/migration/events", Vec::new())
            .await
    }

    /// `POST /vm/migration`, answered by the migration's events.
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn migrate_and_follow(
        &self,
        request: &MigrateRequest,
    ) -> Result<Lines<Event>, Observation> {
        let begin = async |request: &MigrateRequest| {
            self.lines(Method::POST, "/vm/migration", json(request)?)
                .await
        };
        match begin(request).await {
            // A VM that was started by version 0.1 looks names up by itself, and knows no addresses.
            Err(why) if why.id == "usage.body" && !request.addresses.is_empty() => {
                let of_0_1 = MigrateRequest {
                    addresses: Vec::new(),
                    ..request.clone()
                };
                begin(&of_0_1).await
            }
            begun => begun,
        }
    }
}

impl Lines<Event> {
    /// Identifier of the migration, where these events are the answer to its request.
    pub fn migration_id(&self) -> Option<&str> {
        self.header(MIGRATION_ID)
    }
}
