//! CPU models in files: a base, and features more or less; `docs/cpu-models.md` tells the format.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::level::Level;
use super::model::{Base, Model};
use super::set::Bit;

/// Largest file that is read.
const MAX_FILE: u64 = 64 << 10;
/// Longest name of a model.
const MAX_NAME: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    base: String,
    name: Option<String>,
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
}

impl Model {
    /// The model that is named so: `host` or a level.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "host" => Some(Self::host()),
            _ => name.parse().ok().map(Self::level),
        }
    }

    /// Reads a model from a TOML file.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong in it.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let mut text = String::new();
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let kind = file.metadata().map_err(|e| wrong(e.to_string()))?;
        if !kind.is_file() {
            return Err(wrong("it is no regular file".into()));
        }
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(|e| wrong(e.to_string()))?;
        if text.len() as u64 > MAX_FILE {
            return Err(wrong(format!("it is larger than {MAX_FILE} bytes")));
        }
        let name = path.file_stem().map(|stem| stem.to_string_lossy());
        Self::from_toml(&text, &name.unwrap_or_default()).map_err(wrong)
    }

    /// Reads a model from the text of such a file; `file_name` is its name where it gives itself none.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(crate) fn from_toml(text: &str, file_name: &str) -> Result<Self, String> {
        let file: FileModel = toml::from_str(text).map_err(|e| {
            let message = e.message().lines().collect::<Vec<_>>().join(", ");
            match e.span() {
                Some(span) => {
                    let upto = &text.as_bytes()[..span.start.min(text.len())];
                    let line = upto.iter().filter(|b| **b == b'\n').count() + 1;
                    format!("line {line}: {message}")
                }
                None => message,
            }
        })?;
        let FileModel {
            base,
            name,
            add,
            remove,
        } = file;
        let base = match base.as_str() {
            "host" => Base::Host,
            level => Base::Level(level.parse::<Level>().map_err(|()| {
                format!("base {level:?} is no model: host and x86-64-v1 to x86-64-v4 are")
            })?),
        };
        let name = name.unwrap_or_else(|| file_name.chars().take(MAX_NAME).collect());
        if name.is_empty()
            || name.len() > MAX_NAME
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(format!(
                "name {name:?}: 1 to {MAX_NAME} letters, digits, '-', '_' or '.' are needed"
            ));
        }
        let feature = |text: &String| {
            Bit::parse(text).ok_or_else(|| {
                format!(
                    "{text:?} is no feature: write a name such as avx2, or LEAF:INDEX:REGISTER:BIT"
                )
            })
        };
        let add = add
            .into_iter()
            .map(|text| Ok((feature(&text)?, text)))
            .collect::<Result<Vec<_>, String>>()?;
        let remove = remove.iter().map(feature).collect::<Result<Vec<_>, _>>()?;
        if let Some((_, text)) = add.iter().find(|(bit, _)| remove.contains(bit)) {
            return Err(format!("{text} is both added and removed"));
        }
        let model = Self {
            name,
            base,
            add,
            remove,
        };
        let broken = model.unsupported_additions();
        if !broken.is_empty() {
            return Err(format!("{}: add that too", broken.join(", ")));
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Model, String> {
        Model::from_toml(text, "pool")
    }

    #[test]
    fn a_model_is_read_with_its_changes() {
        let model = read(
            "base = \"x86-64-v2\"\nadd = [\"aes\", \"0x1:0:ecx:1\"]\nremove = [\"kvm_pv_eoi\"]\n",
        )
        .unwrap();
        assert_eq!(model.name(), "pool");
        assert_eq!(model.base, Base::Level(Level::V2));
        assert_eq!((model.add.len(), model.remove.len()), (2, 1));
        assert_eq!(model.add[1].0, Bit::parse("pclmulqdq").unwrap());
        assert_eq!(
            read("base = \"host\"\nname = \"a.b\"").unwrap().name(),
            "a.b"
        );
    }

    #[test]
    fn garbage_is_refused_by_line_or_word() {
        for (text, word) in [
            ("", "base"),
            ("base = 1", "line 1"),
            ("base = \"x86-64-v5\"", "x86-64-v5"),
            ("base = \"host\"\ncolour = \"red\"", "colour"),
            ("base = \"host\"\nadd = [\"avx3\"]", "avx3"),
            ("base = \"host\"\nremove = [\"7:0:esi:1\"]", "7:0:esi:1"),
            ("base = \"host\"\nname = \"a\\u001b\"", "name"),
            ("base = \"host\"\nname = \"\"", "name"),
            (
                "base = \"host\"\nadd = [\"avx\"]\nremove = [\"avx\"]",
                "both",
            ),
            ("base = \"x86-64-v2\"\nadd = [\"avx2\"]", "avx2 needs avx"),
            ("\u{0}\u{1}", "line 1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_none_or_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Model::from_file(dir.path())
                .unwrap_err()
                .contains("regular")
        );
        assert!(
            Model::from_file(Path::new("/dev/zero"))
                .unwrap_err()
                .contains("regular")
        );
        let large = dir.path().join("large.toml");
        std::fs::write(&large, "#".repeat(70_000)).unwrap();
        assert!(Model::from_file(&large).unwrap_err().contains("larger"));
        std::fs::write(&large, [0xff, 0xfe]).unwrap();
        assert!(Model::from_file(&large).is_err());
        let good = dir.path().join("web.toml");
        std::fs::write(&good, "base = \"x86-64-v1\"\n").unwrap();
        assert_eq!(Model::from_file(&good).unwrap().name(), "web");
    }

    proptest! {
        #[test]
        fn nothing_in_a_file_panics(text in "\\PC{0,200}") {
            let _ = read(&text);
        }

        #[test]
        fn nothing_as_a_feature_panics(word in "[a-z0-9x:]{0,40}") {
            let _ = read(&format!("base = \"host\"\nadd = [\"{word}\"]"));
        }
    }
}
