//! What is not listed fails.

use super::*;

#[test]
fn every_list_compiles_and_fits_the_kernel() {
    for kind in Kind::ALL {
        let program = filter::of_kind(kind).unwrap();
        // BPF_MAXINSNS
        assert!(program.len() < 4096, "{}: {}", kind.name(), program.len());
    }
    assert!(filter::of_all().is_ok());
}
