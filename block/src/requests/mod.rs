//! Requests that are in flight, their order, and the threads that carry them out.

mod order;
mod pace;
pub mod pool;
pub mod request;
pub mod uring;
