//! In which version each component travels, agreed on before anything moves.
//!
//! The source offers what it can write, the destination chooses the newest that it can read of each, or
//! refuses by name. Both travel as JSON: `{"components":{"rtc":[1,2]}}` and `{"components":{"rtc":2}}`. Other
//! fields are not looked at, so that later versions can say more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::component::{self, Component, MAX_COMPONENTS, Versions};

/// Longest text that is read: 256 identities of 80 bytes, each with its versions, take half of it.
const MAX_TOLD: usize = 64 << 10;

/// Characters that are shown of what cannot be read.
const MAX_SHOWN: usize = 200;

/// Components of a machine, and the versions of each that are known: written at a source, read at a
/// destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<String, Versions>);

/// The version of each component in which it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed(BTreeMap<String, u32>);

/// Either, as it travels.
#[derive(Serialize, Deserialize)]
struct Told<M> {
    components: M,
}

/// Why two sides cannot agree: what is the matter with which component.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Disagreement {
    /// What the peer sent is none of these objects.
    #[error("what the peer says of the state's components cannot be read: {0}")]
    Malformed(String),
    /// Some have no version that both know.
    #[error("{}", .0.join("; "))]
    Components(Vec<String>),
}

/// Reads what a peer sent.
fn parsed<V: for<'de> Deserialize<'de>>(text: &str) -> Result<BTreeMap<String, V>, Disagreement> {
    if text.len() > MAX_TOLD {
        let length = text.len();
        return Err(Disagreement::Malformed(format!(
            "{length} bytes are more than {MAX_TOLD}"
        )));
    }
    let told: Result<Told<BTreeMap<String, V>>, _> = serde_json::from_str(text);
    let short = |e: serde_json::Error| e.to_string().chars().take(MAX_SHOWN).collect();
    let all = told
        .map_err(|e| Disagreement::Malformed(short(e)))?
        .components;
    if all.len() > MAX_COMPONENTS {
        return Err(Disagreement::Malformed(format!(
            "{} components are more than {MAX_COMPONENTS}",
            all.len()
        )));
    }
    match all.keys().find(|id| !component::is_id(id)) {
        Some(id) => Err(Disagreement::Malformed(format!(
            "{:?} is no component",
            id.chars().take(MAX_SHOWN).collect::<String>()
        ))),
        None => Ok(all),
    }
}

fn telling<V: Serialize>(components: &BTreeMap<String, V>) -> String {
    serde_json::json!(Told { components }).to_string()
}

/// All of `complaints`, if there are any.
fn unless_none(complaints: Vec<String>) -> Result<(), Disagreement> {
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(Disagreement::Components(complaints))
    }
}

impl Known {
    /// Adds the component of kind `T` of which there is one.
    pub fn one<T: Component>(&mut self) {
        self.0.insert(T::KIND.to_owned(), T::VERSIONS);
    }

    /// Adds the component of kind `T` with this name.
    pub fn named<T: Component>(&mut self, name: &str) {
        self.0.insert(T::named(name), T::VERSIONS);
    }

    /// Adds the component of kind `T` with this number.
    pub fn numbered<T: Component>(&mut self, number: usize) {
        self.0.insert(T::numbered(number), T::VERSIONS);
    }

    /// Those of `kinds`, of which only the first version is known: all that a peer knows which does not
    /// agree on versions.
    #[must_use]
    pub fn in_first_version(&self, kinds: &[&str]) -> Self {
        let is_of_them = |id: &&String| kinds.contains(&component::kind(id));
        let ids = self.0.keys().filter(is_of_them).cloned();
        Self(ids.map(|id| (id, Versions::FIRST)).collect())
    }

    /// The newest of each.
    pub fn newest(&self) -> Agreed {
        let newest = |(id, versions): (&String, &Versions)| (id.clone(), versions.newest);
        Agreed(self.0.iter().map(newest).collect())
    }

    /// As it travels.
    pub fn to_json(&self) -> String {
        telling(&self.0)
    }

    /// Reads what a source offers.
    ///
    /// # Errors
    /// [`Disagreement::Malformed`].
    pub fn from_json(text: &str) -> Result<Self, Disagreement> {
        parsed(text).map(Self)
    }

    /// Chooses of what a source offers the newest that can be read here.
    ///
    /// # Errors
    /// [`Disagreement::Components`] with all that this side does not know, or lacks.
    pub fn choose(&self, offered: &Self) -> Result<Agreed, Disagreement> {
        let mut chosen = BTreeMap::new();
        let mut complaints = Vec::new();
        for (id, theirs) in &offered.0 {
            let ours = self.0.get(id);
            match ours.and_then(|ours| ours.newest_of(*theirs)) {
                Some(version) => drop(chosen.insert(id.clone(), version)),
                None => complaints.push(match ours {
                    Some(ours) => {
                        format!("{id}: the source saves {theirs}, the destination loads {ours}")
                    }
                    None => {
                        format!("{id}: the source saves {theirs}, the destination does not know it")
                    }
                }),
            }
        }
        let lacking = self.0.iter().filter(|(id, _)| !offered.0.contains_key(*id));
        complaints.extend(lacking.map(|(id, ours)| {
            format!("{id}: the destination loads {ours}, the source does not save it")
        }));
        unless_none(complaints).map(|()| Agreed(chosen))
    }

    /// Checks that a destination's choice is one of what this side writes.
    ///
    /// # Errors
    /// [`Disagreement::Components`] with all that it may not choose so.
    pub fn check(&self, chosen: &Agreed) -> Result<(), Disagreement> {
        let wrong = chosen
            .0
            .iter()
            .filter_map(|(id, version)| match self.0.get(id) {
                Some(ours) if ours.contains(*version) => None,
                Some(ours) => Some(format!(
                    "{id}: the destination wants version {version}, the source saves {ours}"
                )),
                None => Some(format!(
                    "{id}: the destination wants version {version}, the source does not know it"
                )),
            });
        let lacking = self.0.iter().filter(|(id, _)| !chosen.0.contains_key(*id));
        let lacking = lacking
            .map(|(id, ours)| format!("{id}: the source saves {ours}, the destination takes none"));
        unless_none(wrong.chain(lacking).collect())
    }
}

impl Agreed {
    /// As it travels.
    pub fn to_json(&self) -> String {
        telling(&self.0)
    }

    /// Reads what a destination chose.
    ///
    /// # Errors
    /// [`Disagreement::Malformed`].
    pub fn from_json(text: &str) -> Result<Self, Disagreement> {
        parsed(text).map(Self)
    }

    /// The version of `id`, if it travels.
    pub fn version(&self, id: &str) -> Option<u32> {
        self.0.get(id).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(components: &str) -> Known {
        Known::from_json(&format!(r#"{{"components":{components}}}"#)).unwrap()
    }

    fn agreed(components: &str) -> Agreed {
        Agreed::from_json(&format!(r#"{{"components":{components}}}"#)).unwrap()
    }

    fn refused(ours: &str, offered: &str) -> String {
        known(ours).choose(&known(offered)).unwrap_err().to_string()
    }

    #[test]
    fn the_newest_that_both_know_is_chosen() {
        let here = known(r#"{"rtc":[1,2],"serial":[2,4],"vcpu.0":[1,1]}"#);
        let offered = known(r#"{"rtc":[1,1],"serial":[3,9],"vcpu.0":[1,3]}"#);
        let chosen = here.choose(&offered).unwrap();
        assert_eq!(chosen, agreed(r#"{"rtc":1,"serial":4,"vcpu.0":1}"#));
        offered.check(&chosen).unwrap();
        assert_eq!(Agreed::from_json(&chosen.to_json()).unwrap(), chosen);
        assert_eq!(Known::from_json(&offered.to_json()).unwrap(), offered);
        let text = r#"{"components":{"rtc":[1,1]},"more":7}"#;
        assert_eq!(Known::from_json(text).unwrap(), known(r#"{"rtc":[1,1]}"#));
    }

    #[test]
    fn what_has_no_common_version_is_named_with_both() {
        let said = refused(
            r#"{"rtc":[1,1],"pit":[1,1]}"#,
            r#"{"rtc":[2,3],"pit":[1,1]}"#,
        );
        let expected = "rtc: the source saves versions 2 to 3, the destination loads version 1";
        assert_eq!(said, expected);
        assert!(refused(r#"{"rtc":[3,4]}"#, r#"{"rtc":[1,2]}"#).contains("rtc"));
    }

    #[test]
    fn what_one_side_alone_knows_is_named() {
        let said = refused(r#"{"rtc":[1,1]}"#, r#"{"rtc":[1,1],"balloon":[1,1]}"#);
        assert_eq!(
            said,
            "balloon: the source saves version 1, the destination does not know it"
        );
        let said = refused(r#"{"rtc":[1,1],"pit":[1,2]}"#, r#"{"rtc":[1,1]}"#);
        assert!(said.contains("the source does not save it"), "{said}");
    }

    #[test]
    fn a_choice_that_was_not_offered_is_refused() {
        let ours = known(r#"{"rtc":[1,2],"pit":[1,1]}"#);
        for (chosen, named) in [
            (
                r#"{"rtc":3,"pit":1}"#,
                "rtc: the destination wants version 3",
            ),
            (
                r#"{"rtc":1}"#,
                "pit: the source saves version 1, the destination takes none",
            ),
            (
                r#"{"rtc":1,"pit":1,"tpm":1}"#,
                "tpm: the destination wants version 1, the source does not",
            ),
        ] {
            let refused = ours.check(&agreed(chosen)).unwrap_err();
            assert!(refused.to_string().contains(named), "{refused}");
        }
    }

    #[test]
    fn an_older_peer_knows_the_first_version_of_everything() {
        let kinds = ["rtc", "vcpu"];
        let here = known(r#"{"rtc":[1,2],"vcpu.0":[1,1]}"#);
        let first = here.in_first_version(&kinds);
        let chosen = here.choose(&first).unwrap();
        assert_eq!(chosen, agreed(r#"{"rtc":1,"vcpu.0":1}"#));
        here.check(&first.newest()).unwrap();
        for (newer, named) in [
            (r#"{"rtc":[2,3],"vcpu.0":[1,1]}"#, "rtc"),
            (r#"{"rtc":[1,3],"tpm":[1,1]}"#, "tpm"),
        ] {
            let newer = known(newer);
            let first = newer.in_first_version(&kinds);
            let said = newer.choose(&first).unwrap_err().to_string();
            assert!(said.contains(named) && !said.contains(';'), "{said}");
            let said = newer.check(&first.newest()).unwrap_err().to_string();
            assert!(said.contains(named) && !said.contains(';'), "{said}");
        }
    }

    #[test]
    fn what_is_no_list_of_components_is_refused() {
        let many: BTreeMap<String, u32> = (0..300).map(|n| (format!("vcpu.{n}"), 1)).collect();
        let lists = [
            "[]".to_owned(),
            "{\"\":1}".to_owned(),
            "{\"a\\u001b\":1}".to_owned(),
            "{\"a\":-1}".to_owned(),
            serde_json::to_string(&many).unwrap(),
        ];
        let lists = lists.map(|list| format!("{{\"components\":{list}}}"));
        let long = " ".repeat(MAX_TOLD + 1);
        let others = ["", "{}", "[]", &long];
        for text in lists.iter().map(String::as_str).chain(others) {
            let refused = Agreed::from_json(text).unwrap_err();
            assert!(matches!(refused, Disagreement::Malformed(_)), "{text:.40}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            text in prop_oneof![".{0,80}", ".{0,80}".prop_map(|t| format!("{{\"components\":{{{t}}}}}"))]
        ) {
            let here = known(r#"{"rtc":[1,2]}"#);
            if let Ok(offered) = Known::from_json(&text) {
                let _ = here.choose(&offered);
            }
            if let Ok(chosen) = Agreed::from_json(&text) {
                let _ = here.check(&chosen);
            }
        }
    }
}
