//! Observations as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use migration::observation::{Observation, Side};

/// The status code that fits an observation, by the area of its id.
pub fn http_status(observation: &Observation) -> StatusCode {
    let area = observation.id.split('.').next().unwrap_or_default();
    match (area, observation.id.as_str()) {
        (_, "usage.endpoint") => StatusCode::NOT_FOUND,
        (_, "usage.method") => StatusCode::METHOD_NOT_ALLOWED,
        (_, "usage.body-size") => StatusCode::PAYLOAD_TOO_LARGE,
        ("usage", _) => StatusCode::BAD_REQUEST,
        (_, "migration.none" | "job.not-found" | "file.unknown" | "disk.unknown") => {
            StatusCode::NOT_FOUND
        }
        (_, "disk.moving" | "disk.claim" | "disk.size" | "disk.target" | "disk.read-only") => {
            StatusCode::CONFLICT
        }
        (_, "api.busy") => StatusCode::SERVICE_UNAVAILABLE,
        ("vm" | "migration" | "job" | "guest" | "file", _) => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An observation on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError(pub Observation);

impl ApiError {
    pub fn new(id: &str, message: impl Into<String>) -> Self {
        Self(Observation::new(Side::Source, id, message))
    }
}

impl From<Observation> for ApiError {
    fn from(observation: Observation) -> Self {
        Self(observation)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (http_status(&self.0), Json(self.0)).into_response()
    }
}
