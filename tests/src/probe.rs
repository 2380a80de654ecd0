//! The probe guest's lines, as the black-box tests read them.

pub use machine::probe::*;
