//! Medians: what stays of several runs.

use serde::Serialize;

/// One figure as several runs measured it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Samples {
    /// The middle value; the mean of the two middle ones of an even number.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// All, in the order of the runs.
    pub values: Vec<f64>,
}

impl Samples {
    /// Sums up the values of the runs; `None` without any.
    pub fn new(values: Vec<f64>) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            values,
        })
    }

    /// Sums up one figure of every run; `None` without any run.
    pub fn of<T>(runs: &[T], figure: impl FnMut(&T) -> f64) -> Option<Self> {
        Self::new(runs.iter().map(figure).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_two_middle_ones() {
        for (values, median, min, max) in [
            (vec![7.0], 7.0, 7.0, 7.0),
            (vec![9.0, 1.0, 2.0], 2.0, 1.0, 9.0),
            (vec![4.0, 1.0, 3.0, 2.0], 2.5, 1.0, 4.0),
            (vec![5.0, 5.0, 5.0, 100.0, 5.0], 5.0, 5.0, 100.0),
        ] {
            let samples = Samples::new(values.clone()).unwrap();
            assert_eq!(
                (samples.median, samples.min, samples.max),
                (median, min, max)
            );
            assert_eq!(samples.values, values, "the order of the runs is kept");
        }
        assert_eq!(Samples::new(Vec::new()), None);
    }
}
