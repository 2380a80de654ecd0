//! A model gone through in all its states.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Model};

/// What states and actions are.
pub trait Value: Clone + Debug + PartialEq + Send + Sync + 'static {}

impl<T: Clone + Debug + PartialEq + Send + Sync + 'static> Value for T {}

fn gone_through<M>(model: M) -> impl Checker<M>
where
    M: Model + Send + Sync + 'static,
    M::State: Value + Hash,
    M::Action: Value,
{
    model.checker().threads(2).spawn_bfs().join()
}

/// What it says always, sometimes or in the end is so is so; it has more than so many states.
///
/// # Panics
/// When not.
#[track_caller]
pub fn holds<M>(model: M, more_than: usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Value + Hash,
    M::Action: Value,
{
    let checker = gone_through(model);
    checker.assert_properties();
    let states = checker.unique_state_count();
    assert!(states > more_than, "{states} states");
}

/// It shows that `broken` is not so, or not always.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn shows<M>(model: M, broken: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Value + Hash,
    M::Action: Value,
{
    let checker = gone_through(model);
    assert!(checker.discovery(broken).is_some(), "not seen: {broken}");
}
