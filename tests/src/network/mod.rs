//! Two hosts on networks of their own, with a wire between them whose bandwidth, latency and breaks
//! are the test's, and somebody outside who talks to the guests.

pub mod namespace;
pub mod packet;
pub mod requirements;
pub mod tcp;
pub mod two_hosts;
pub mod udp;

pub use namespace::Namespace;
pub use packet::Capture;
pub use requirements::lacks_network;
pub use tcp::EchoConnection;
pub use two_hosts::{Site, TwoHosts};
pub use udp::EchoStream;
