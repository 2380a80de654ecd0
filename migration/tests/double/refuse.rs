//! What a double fails at.

use migration::observation::{Observation, Side};

/// What a double refuses to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    Nothing,
    Describe,
    OfferState,
    AgreeOnState,
    OfferDisks,
    MarkDisks,
    TrackDisks,
    StartLog,
    FetchDirty,
    ClearDirty,
    /// Panics in the middle of a pass, on the thread of a stream.
    ClearDirtyByPanic,
    FlushDisks,
    Pause,
    SaveState,
    Negotiate,
    ChooseState,
    Prepare,
    Ram,
    LoadState,
    LoadStateByPanic,
    Start,
    StartByPanic,
}

pub(super) fn refusal(side: Side) -> Observation {
    Observation::new(side, "test.refused", "the double was told to refuse this")
}
