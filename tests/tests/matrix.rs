//! Every fault in every phase: both sides tell the truth, and the guest is in one place, unharmed.

use tests::blackbox::machine_lock;
use tests::matrix::{fault, run};

#[test]
fn every_fault_in_every_phase_leaves_one_guest_and_the_truth() {
    let Some(_lock) = machine_lock() else { return };
    let board = run::all(&fault::all());
    println!("{board}");
    for skipped in board.skipped() {
        println!("skipped: {skipped}");
    }
    let failures = board.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
