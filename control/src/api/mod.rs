//! The control API of a VM: HTTP/1.1 and JSON on its `control.sock`, and its client.
//!
//! Bodies are small, fields that are not known are refused, and every error is an
//! [`Observation`](migration::observation::Observation) with a fitting status code.

pub mod body;
pub mod client;
mod connections;
mod error;
mod jobs;
mod kept;
mod openapi;
mod routes;
mod served;
mod server;
mod streams;

pub use error::http_status;
pub use openapi::document;
pub use server::{ControlServer, Hangup};
