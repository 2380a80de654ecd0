//! Why a unit did not come.

/// What became of a request that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The link is lost, or not there yet; the same can be asked again when it is back.
    #[error("the link to the host that has it is lost")]
    Lost,
    /// The host that has it cannot read it.
    #[error("the host that has it cannot read it from its storage")]
    Unreadable,
    /// The volume was released.
    #[error("the host that had it was told that it is not needed any more")]
    Released,
    /// It is not of the volume.
    #[error("it lies outside of the volume, or is no whole number of its units")]
    Range,
    /// The client was stopped.
    #[error("nobody asks for it any more")]
    Stopped,
}
