//! The tree of a `use` line: `a::{b, c::{self, d as e}}`.

/// A name that a `use` line brings in, and the path that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    pub name: String,
    pub path: Vec<String>,
}

/// All names that the `use` lines of `text` bring in, and `text` without these lines.
pub(super) fn imports(text: &str) -> (Vec<Import>, String) {
    let mut found = Vec::new();
    let mut others = String::new();
    let mut rest = text;
    while let Some(at) = start_of_use(rest) {
        others.push_str(&rest[..at]);
        let line = &rest[at + "use ".len()..];
        let end = line.find(';').unwrap_or(line.len());
        leaves(&line[..end], &[], &mut found);
        rest = &line[end..];
    }
    others.push_str(rest);
    (found, others)
}

fn start_of_use(text: &str) -> Option<usize> {
    let starts_word = |at: usize| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || c == ';' || c == '}' || c == '{')
    };
    let mut uses = text.match_indices("use ").map(|(at, _)| at);
    uses.find(|at| starts_word(*at))
}

fn leaves(tree: &str, before: &[String], found: &mut Vec<Import>) {
    let tree = tree.trim();
    let segments = |text: &str| {
        let parts = text
            .split("::")
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    if let Some((path, list)) = tree.split_once('{') {
        let path = [before, &segments(path)].concat();
        let list = list.trim_end().strip_suffix('}').unwrap_or(list);
        for branch in branches(list) {
            leaves(branch, &path, found);
        }
        return;
    }
    let (path, renamed) = match tree.split_once(" as ") {
        Some((path, name)) => (path, Some(name.trim().to_owned())),
        None => (tree, None),
    };
    let mut path = [before, &segments(path)].concat();
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    if let Some(last) = path.last() {
        let name = renamed.unwrap_or_else(|| last.clone());
        found.push(Import { name, path });
    }
}

/// Splits at the commas that stand in no braces.
fn branches(list: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&list[start..]);
    found.retain(|branch| !branch.trim().is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_tree_has_its_path() {
        let (found, others) =
            imports("pub use a::{b, c::{self, d as e},};\nfn f() {}use crate::g;");
        let told: Vec<_> = found
            .iter()
            .map(|import| format!("{}={}", import.name, import.path.join("::")))
            .collect();
        assert_eq!(told, ["b=a::b", "c=a::c", "e=a::c::d", "g=crate::g"]);
        assert_eq!(others, "pub ;\nfn f() {};");
    }
}
