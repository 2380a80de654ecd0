//! The text of a source file without comments, literals and tests.

/// Leaves out what says nothing about imports, and takes literals for empty ones, so that braces balance.
pub(super) fn product(text: &str) -> String {
    without_tests(&without_literals(text))
}

fn without_literals(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = kept.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        rest = if rest.starts_with("//") {
            rest.find('\n').map_or("", |end| &rest[end..])
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or("", |end| &rest[end + 2..])
        } else if let Some(after) = after_raw_string(rest).filter(|_| !after_word) {
            kept.push_str("\"\"");
            after
        } else if first == '"' {
            kept.push_str("\"\"");
            after_quoted(&rest[1..], '"')
        } else if let Some(after) = after_character(rest) {
            kept.push('0');
            after
        } else {
            kept.push(first);
            &rest[first.len_utf8()..]
        };
    }
    kept
}

/// What follows the closing quote of a literal whose opening one is behind us.
fn after_quoted(text: &str, quote: char) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

fn after_raw_string(text: &str) -> Option<&str> {
    let body = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let body = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or("", |at| &body[at + end.len()..]))
}

/// What follows a character; `None` for the name of a lifetime.
fn after_character(text: &str) -> Option<&str> {
    let body = text.strip_prefix('\'')?;
    let mut chars = body.chars();
    match (chars.next()?, chars.next()?) {
        ('\\', _) => Some(after_quoted(body, '\'')),
        (_, '\'') => Some(chars.as_str()),
        _ => None,
    }
}

fn without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        rest = after_item(&rest[at + MARK.len()..]);
    }
    kept.push_str(rest);
    kept
}

/// What follows an item: its block, or its semicolon.
fn after_item(text: &str) -> &str {
    let mut depth = 0_u32;
    let is_use = text
        .trim_start()
        .trim_start_matches("pub(crate) ")
        .starts_with("use ");
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && !is_use {
                    return &text[at + 1..];
                }
            }
            ';' if depth == 0 => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_compiled_into_the_product_is_kept() {
        let text = "// use a::B;\nfn f<'a>(c: &'a str) { g('{', '\\'', \"}\\\"\", r#\"\"}\"#) }\n\
                    #[cfg(test)]\nuse crate::{a, b};\n#[cfg(test)]\nmod tests { fn h() { } }\nuse c;";
        let kept = product(text);
        let kept: String = kept.split_whitespace().collect();
        assert_eq!(kept, "fnf<'a>(c:&'astr){g(0,0,\"\",\"\")}usec;");
    }
}
