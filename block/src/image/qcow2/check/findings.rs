//! What was found, bounded.

/// Most findings that are told one by one.
const MOST: usize = 32;

/// Sentences about what is wrong: all are counted, the first ones kept.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) count: u64,
    pub(crate) told: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, finding: impl FnOnce() -> String) {
        self.count += 1;
        if self.told.len() < MOST {
            self.told.push(finding());
        }
    }
}
