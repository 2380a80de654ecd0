//! A client is killed: neither its guest nor its migration minds. What becomes of a migration whose
//! sides are killed, or whose link breaks, is in `matrix.rs`.

use tests::blackbox::{Guest, Migration, Pair, Vms, guest_lock};

#[test]
fn killed_client_does_not_harm_guest_or_migration() {
    let Some(_lock) = guest_lock() else { return };
    let pair = Pair::new();
    let mut console = pair.source.run("guest", &Guest::slow_to_move());
    let address = pair.destination.receive("guest", "127.0.0.1:0");
    let slow = ["--bandwidth", "16MiB/s"];
    let mut migration = Migration::start(&pair.source, "guest", &address, &slow);
    migration.wait_progress();
    drop(migration);
    pair.destination.wait_state("guest", "running");
    pair.source.is_clean();
    console.moves_to(&pair.destination, "guest");
    console.verifies_ledger();
}
