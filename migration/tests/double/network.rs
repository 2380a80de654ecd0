//! Real sockets within this host.

use std::time::Duration;

use migration::endpoint::Endpoint;
use migration::transport::socket::{SocketConnect, SocketListen};
use migration::transport::{Connect, Connection, Listen, Patience};

/// Listens at an address of the loop-back, and connects there.
pub fn tcp() -> (SocketConnect, SocketListen) {
    listening("127.0.0.1:0")
}

/// Listens at `address`, and connects there.
pub fn listening(address: &str) -> (SocketConnect, SocketListen) {
    let endpoint = |text: &str| Endpoint::numeric(text.parse().unwrap()).unwrap();
    let listen = SocketListen::bind(&endpoint(address)).unwrap();
    let connect = SocketConnect::new(endpoint(&listen.address())).unwrap();
    (connect, listen)
}

/// A connection from one side to the other: its two ends.
pub fn connection((connect, listen): &(SocketConnect, SocketListen)) -> [Box<dyn Connection>; 2] {
    let patience = Patience {
        timeout: Duration::from_secs(5),
        give_up: &|| false,
    };
    let here = connect.connect(patience).unwrap();
    let there = loop {
        if let Some(connection) = listen.accept(patience.timeout).unwrap() {
            break connection;
        }
    };
    [here, there]
}
