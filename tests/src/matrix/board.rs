//! The matrix as text.

use std::fmt;

use super::phase;

/// How a cell went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Result {
    /// As it must.
    Passed,
    /// Otherwise, in these words.
    Failed(String),
    /// It cannot happen, for this reason.
    Not(&'static str),
    /// This machine cannot do it, for this reason.
    Skipped(String),
}

/// All results, a row for each fault.
#[derive(Debug, Default)]
pub struct Board {
    rows: Vec<(&'static str, Vec<Result>)>,
}

impl Board {
    /// Adds the results of a fault, in the order of the phases.
    pub fn add(&mut self, fault: &'static str, results: Vec<Result>) {
        self.rows.push((fault, results));
    }

    /// What failed.
    pub fn failures(&self) -> Vec<String> {
        self.cells()
            .filter_map(|(fault, phase, result)| match result {
                Result::Failed(why) => Some(format!("{fault} in {phase}: {why}")),
                _ => None,
            })
            .collect()
    }

    /// What this machine could not do.
    pub fn skipped(&self) -> Vec<String> {
        self.cells()
            .filter_map(|(fault, _, result)| match result {
                Result::Skipped(why) => Some(format!("{fault}: {why}")),
                _ => None,
            })
            .collect()
    }

    fn cells(&self) -> impl Iterator<Item = (&'static str, &'static str, &Result)> {
        self.rows.iter().flat_map(|(fault, results)| {
            let phases = phase::ALL.iter().map(|phase| phase.name());
            results.iter().zip(phases).map(|(r, p)| (*fault, p, r))
        })
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.rows.iter().map(|(name, _)| name.len()).max();
        let first = widest.unwrap_or(0);
        write!(f, "{:first$}", "")?;
        for phase in phase::ALL {
            write!(f, " | {}", phase.name())?;
        }
        writeln!(f)?;
        let mut reasons: Vec<&str> = Vec::new();
        for (fault, results) in &self.rows {
            write!(f, "{fault:first$}")?;
            for (phase, result) in phase::ALL.iter().zip(results) {
                let shown = match result {
                    Result::Passed => "ok".to_owned(),
                    Result::Failed(_) => "FAILED".to_owned(),
                    Result::Skipped(_) => "skipped".to_owned(),
                    Result::Not(why) => {
                        let known = reasons.iter().position(|reason| reason == why);
                        let index = known.unwrap_or_else(|| {
                            reasons.push(why);
                            reasons.len() - 1
                        });
                        format!("- {}", index + 1)
                    }
                };
                let width = phase.name().len();
                write!(f, " | {shown:width$}")?;
            }
            writeln!(f)?;
        }
        for (index, why) in reasons.iter().enumerate() {
            writeln!(f, "- {}: {why}", index + 1)?;
        }
        Ok(())
    }
}
