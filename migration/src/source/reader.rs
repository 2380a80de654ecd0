//! What a destination says on a data connection: so far nothing but that it has ended.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

use crate::error::Error;
use crate::session::Session;
use crate::threads::{self, ThreadKind};
use crate::transport::{Connection, Within};
use crate::wire::batch::{BATCH_LEN, BatchHeader, BatchKind};

/// Reads the data connection of `stream` on a thread of its own, which ends with the connection.
pub(super) fn start<'s>(
    scope: &'s Scope<'s, '_>,
    session: &Arc<Session>,
    stream: u16,
    connection: Arc<dyn Connection>,
) -> Result<ScopedJoinHandle<'s, ()>, Error> {
    let session = session.clone();
    threads::start(
        scope,
        ThreadKind::Reader,
        "reading a data connection",
        move || {
            session.guard(|| run(&session, stream, &*connection));
        },
    )
}

/// Takes frames until the connection ends, however it does, or one of them is none. Either ends the
/// migration, unless all pages are there ([`Session::fail`]): a destination whose guest runs may end them before its answer
/// arrives, and then nothing but that answer counts.
fn run(session: &Session, stream: u16, connection: &dyn Connection) {
    loop {
        if let Err(error) = take(session, stream, connection) {
            return session.fail(error);
        }
    }
}

/// Waits for a frame and does what it asks.
fn take(session: &Session, stream: u16, connection: &dyn Connection) -> Result<(), Error> {
    let lost = || Error::link("sending pages");
    // Nobody is asked to say anything here; the control connection knows whether the peer lives.
    while !connection
        .wait_readable(session.timing().peer)
        .map_err(lost())?
    {}
    let mut header = [0; BATCH_LEN];
    let within = Within::bytes(header.len(), session.timing().io);
    connection
        .receive_within(&mut header, within)
        .map_err(lost())?;
    let header: BatchHeader = zerocopy::transmute!(header);
    let refused = |what: &str| {
        Error::Protocol(format!(
            "it sent on data connection {stream} what no destination asks for: {what}"
        ))
    };
    match header.kind() {
        Ok(BatchKind::Pages { .. }) => Err(refused("pages")),
        Ok(BatchKind::Blocks { .. }) => Err(refused("blocks")),
        Ok(BatchKind::PassEnd) => Err(refused("the end of a pass")),
        Err(Error::Protocol(why)) => Err(refused(&why)),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::observation::Side;
    use crate::session::Timing;
    use crate::transport::{Connect, Listen, Patience, memory};
    use crate::wire::batch::{Encoding, PageRange};
    use crate::wire::conversation::Conversation;

    /// When a source reads what the destination says.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum At {
        Copying,
        Committed,
    }

    /// What a source makes of a destination that says `said` on data connection 3 and then ends it.
    fn read(at: At, said: &[u8]) -> Result<(), Error> {
        let time = Duration::from_secs(30);
        let patience = Patience {
            timeout: time,
            give_up: &|| false,
        };
        let (connect, listen) = memory::network(&[]);
        let pair = || {
            let ours = connect.connect(patience).unwrap();
            (ours, listen.accept(time).unwrap().unwrap())
        };
        let ((control, _other), (data, theirs)) = (pair(), pair());
        let timing = Timing {
            io: time,
            peer: time,
        };
        let conversation = Conversation::new(Side::Source);
        let (session, notes) = Session::new(conversation, control.into(), timing);
        let data = session.add_data(data);
        if at == At::Committed {
            session.pages_complete();
        }
        theirs.send(said).unwrap();
        drop(theirs);
        run(&session, 3, &*data);
        assert_eq!(session.is_stopped(), at == At::Copying);
        session.next(&notes, Duration::ZERO).map(|note| {
            assert!(note.is_none());
        })
    }

    fn frames() -> [Vec<u8>; 4] {
        let pages = BatchHeader::of(1, &[PageRange::new(0, 1, Encoding::Raw)]);
        [
            vec![0x77; BATCH_LEN],
            pages.as_bytes().to_vec(),
            BatchHeader::pass_end(1).as_bytes().to_vec(),
            [BatchHeader::pass_end(1).as_bytes(), &[0x77; 100]].concat(),
        ]
    }

    #[test]
    fn the_end_of_a_data_connection_is_a_lost_link() {
        for said in [&[][..], &frames()[1][..BATCH_LEN - 1]] {
            let lost = read(At::Copying, said);
            assert!(matches!(lost, Err(Error::Link { .. })), "{lost:?}");
        }
    }

    #[test]
    fn a_frame_that_nobody_asked_for_is_told_with_its_connection() {
        for said in frames() {
            let Err(Error::Protocol(text)) = read(At::Copying, &said) else {
                panic!("{said:?} is taken")
            };
            assert!(text.contains("data connection 3"), "{text}");
        }
    }

    #[test]
    fn once_the_commit_is_sent_only_its_answer_counts() {
        for said in [&[][..], &frames()[0], &frames()[1]] {
            read(At::Committed, said).unwrap();
        }
    }
}
