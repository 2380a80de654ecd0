//! What people are told while a benchmark goes on.

use std::fmt;
use std::io::Write;

/// Says on the standard error what is being measured.
pub(super) fn progress(what: fmt::Arguments<'_>) {
    // Whoever closed it does not want to know.
    let _ = writeln!(std::io::stderr(), "{what}");
}
