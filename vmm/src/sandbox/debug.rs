//! What only whoever tests this program asks for.

use std::sync::OnceLock;

use super::kinds::Kind;

/// Names calls that are refused although they are listed: `KIND:CALL`, by commas.
const REFUSED_CALLS_VARIABLE: &str = "VMM_DEBUG_REFUSED_CALLS";

/// Whether a call is refused to a kind of thread to see what that does.
pub(super) fn refused(kind: Kind, call: &str) -> bool {
    static ORDERED: OnceLock<String> = OnceLock::new();
    let ordered = ORDERED.get_or_init(|| {
        let ordered = std::env::var(REFUSED_CALLS_VARIABLE).unwrap_or_default();
        if !ordered.is_empty() {
            tracing::warn!(
                ordered,
                "calls are refused as {REFUSED_CALLS_VARIABLE} orders"
            );
        }
        ordered
    });
    ordered
        .split(',')
        .any(|order| order.split_once(':') == Some((kind.name(), call)))
}
