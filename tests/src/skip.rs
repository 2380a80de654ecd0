//! How a test says that this machine cannot run it.

/// Prints `skipped: reason` and returns from the test; the test command counts these lines.
///
/// The arguments are those of [`format!`].
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format_args!($($reason)*));
        return Default::default();
    }};
}

/// Why a test that starts guests on `/dev/kvm` cannot run here; `None` if it can.
#[must_use]
pub fn lacks_kvm() -> Option<String> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .err()
        .map(|error| format!("/dev/kvm cannot be opened: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn skip_leaves_the_test() {
        fn test(reached: &mut bool) {
            if !*reached {
                skip!("no {}", "reason");
            }
            *reached = false;
        }
        let mut reached = false;
        test(&mut reached);
        assert!(!reached);
        reached = true;
        test(&mut reached);
        assert!(!reached);
    }
}
