//! Two hosts on networks of their own, with a wire between them whose bandwidth, latency and breaks
//! are the test's, and somebody outside who talks to the guests.

pub mod namespace;
pub mod requirements;
pub mod two_hosts;

pub use namespace::Namespace;
pub use requirements::lacks_network;
pub use two_hosts::{Site, TwoHosts};
