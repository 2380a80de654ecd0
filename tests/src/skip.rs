//! How a test says that this machine cannot run it.

/// Prints `skipped: reason` and returns from the test; the test command counts these lines.
///
/// The arguments are those of [`format!`].
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("{}", $crate::skip::line(format_args!($($reason)*)));
        return;
    }};
}

/// The line by which the test command knows a skipped test: one line, whatever the reason holds.
#[must_use]
pub fn line(reason: std::fmt::Arguments<'_>) -> String {
    format!("skipped: {}", reason.to_string().replace('\n', " "))
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
    use super::*;

    // Nothing is printed here: the test command would count it.
    #[test]
    fn reason_of_several_lines_stays_one_line() {
        assert_eq!(
            line(format_args!("no {}\nand", "apt")),
            "skipped: no apt and"
        );
    }
}
