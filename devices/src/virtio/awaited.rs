//! What a device that hangs was to have done, for the message that says so.

/// What is waited for at a device that hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The end of its requests.
    Requests,
    /// The end of its requests, after which the reset is done that the driver asked for.
    Reset,
    /// The end of its requests, after which what carries them out is exchanged.
    Pivot,
    /// That what was written is durable.
    Flush,
}

impl Awaited {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Requests => "ended its requests",
            Self::Reset => "ended the requests that the guest's reset of it waits for",
            Self::Pivot => "ended the requests that the exchange of its layers waits for",
            Self::Flush => "made durable what was written",
        }
    }
}
