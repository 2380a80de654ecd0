//! One goal: a figure, and what it is to reach.

use serde::Serialize;

use super::unit::Unit;

/// On which side of the goal a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The goal or more.
    AtLeast,
    /// The goal or less.
    AtMost,
}

/// A figure and what it is to reach.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    /// The scenario that measured it.
    pub scenario: &'static str,
    /// Name of the figure.
    pub figure: &'static str,
    /// What was measured: the median, where there are several runs.
    pub value: f64,
    /// On which side of `goal` it is to be.
    pub bound: Bound,
    /// What it is to reach.
    pub goal: f64,
    /// Unit of both.
    pub unit: Unit,
    /// Whether it does.
    pub reached: bool,
}

impl Goal {
    pub(super) fn new(
        scenario: &'static str,
        figure: &'static str,
        value: f64,
        bound: Bound,
        goal: f64,
        unit: Unit,
    ) -> Self {
        let reached = match bound {
            Bound::AtLeast => value >= goal,
            Bound::AtMost => value <= goal,
        };
        Self {
            scenario,
            figure,
            value,
            bound,
            goal,
            unit,
            reached,
        }
    }
}
