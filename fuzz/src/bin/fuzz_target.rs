//! A target as a program that libFuzzer drives: `VMM_FUZZ_TARGET=NAME fuzz-target CORPUS OPTIONS`.
#![no_main]

use std::sync::OnceLock;

use fuzz::{Target, Turn, check, targets};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("VMM_FUZZ_TARGET").unwrap_or_default();
        match targets::find(&name) {
            Ok(target) => target,
            Err(why) => {
                eprintln!("VMM_FUZZ_TARGET: {why}");
                std::process::exit(2);
            }
        }
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // libFuzzer's hook ends the process at any panic, also in another thread.
    if let Err(found) = check(&Turn::take(), target(), input) {
        eprintln!("{found}");
        std::process::abort();
    }
});
