//! Takes files in, beside the control socket and on its event loop.
//!
//! Whoever connects may be slow, silent or hostile: there are few places, and one who says nothing gives its own up; so
//! many files are kept, and no longer than the connection; and what has to wait for storage, which closing a file may,
//! is done on another thread.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use migration::observation::Observation;
use tokio::time::{sleep, timeout};

use super::kept::{Connection, PassedFile, PassedFiles};
use super::message::{Answer, MESSAGE_LIMIT, Passing, refuse};
use super::socket::{Cut, FilesSocket, Packet, Packets};
use crate::peer;
use crate::places::{Place, Places, RESPITE};

/// Connections at once; as many threads may be closing files at once.
pub(crate) const CONNECTIONS: usize = 16;

/// How long a client is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until it passes its first files.
    pub(super) first_words: Duration,
    /// While files are kept for it, and it says nothing more.
    pub(super) silence: Duration,
    /// Until it has room for an answer.
    pub(super) answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_words: Duration::from_secs(5),
            silence: Duration::from_secs(60),
            answer: Duration::from_secs(5),
        }
    }
}

/// Takes files in for as long as it is polled.
///
/// # Errors
/// What the event loop says of the socket.
pub(crate) async fn serve(
    socket: FilesSocket,
    files: Arc<PassedFiles>,
    patience: Patience,
) -> io::Result<()> {
    let user = socket.user;
    let listener = socket.listener()?;
    let mut places = Places::new(CONNECTIONS);
    let mut fails = false;
    for number in 0.. {
        match listener.accept().await {
            Ok(packets) if !peer::is_of(&packets.socket, user).unwrap_or(false) => {
                tracing::debug!("another user wants to pass files");
            }
            Ok(packets) => {
                let client = Client {
                    packets,
                    files: Arc::clone(&files),
                    connection: Connection(number),
                    patience,
                };
                match places.take() {
                    Some(place) => drop(tokio::spawn(client.served(place))),
                    None => client.turned_away(),
                }
            }
            Err(e) => {
                if !std::mem::replace(&mut fails, true) {
                    tracing::warn!(error = %e, "nobody can be taken in who passes files");
                }
                places.give_up_longest_idle();
                sleep(RESPITE).await;
            }
        }
    }
    Ok(())
}

/// One who passes files.
struct Client {
    packets: Packets,
    files: Arc<PassedFiles>,
    connection: Connection,
    patience: Patience,
}

impl Client {
    /// Serves it until it parts, is silent for too long, or gives its place up.
    async fn served(self, place: Place) {
        let mut keeps_place = None;
        let mut patience = self.patience.first_words;
        loop {
            let packet = tokio::select! {
                received = timeout(patience, self.packets.receive()) => match received {
                    Ok(Ok(packet)) => packet,
                    Ok(Err(_)) | Err(_) => break,
                },
                () = place.given_up() => break,
            };
            let busy = place.busy();
            if packet.text.is_empty() {
                close(packet.descriptors).await;
                break;
            }
            let answer = self.take(packet).await;
            if !self.tell(&answer).await {
                break;
            }
            if matches!(answer, Answer::Kept(_)) {
                keeps_place = Some(busy);
                patience = self.patience.silence;
            }
        }
        let _busy = keeps_place.unwrap_or_else(|| place.busy());
        close(self.files.give_back(self.connection)).await;
    }

    /// Keeps all files of a packet, or closes all.
    async fn take(&self, packet: Packet) -> Answer {
        let notes = match read(&packet) {
            Ok(passing) => passing.files,
            Err(why) => {
                close(packet.descriptors).await;
                return Answer::Refused(why);
            }
        };
        let files = packet.descriptors.into_iter().zip(notes);
        let mut files: Vec<_> = files
            .map(|(descriptor, note)| PassedFile { descriptor, note })
            .collect();
        match self.files.keep(self.connection, &mut files) {
            Ok(ids) => Answer::Kept(ids),
            Err(why) => {
                close(files).await;
                Answer::Refused(why)
            }
        }
    }

    async fn tell(&self, answer: &Answer) -> bool {
        let Ok(text) = serde_json::to_vec(answer) else {
            return false;
        };
        let sent = timeout(self.patience.answer, self.packets.send(&text, &[])).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Tells it that there is no place for it, without waiting for it.
    fn turned_away(&self) {
        let why = refuse("api.busy", "too many pass files to this VM");
        if let Ok(text) = serde_json::to_vec(&Answer::Refused(why)) {
            let _ = self.packets.send_now(&text);
        }
    }
}

/// What a packet says, where all of it came and its descriptors are what it says.
fn read(packet: &Packet) -> Result<Passing, Observation> {
    match packet.cut {
        Cut::Nothing => {}
        Cut::Text => {
            let message = format!("a message has {MESSAGE_LIMIT} bytes at most");
            return Err(refuse("file.message", message));
        }
        Cut::Descriptors => {
            let message = "not all descriptors could be taken in: there are too many, or the VM has none left";
            return Err(refuse("file.too-many", message));
        }
    }
    let passing = Passing::read(&packet.text, packet.descriptors.len())?;
    for (note, descriptor) in passing.files.iter().zip(&packet.descriptors) {
        note.fits(descriptor)?;
    }
    Ok(passing)
}

/// Closes files where nobody waits for their storage but who passed them.
async fn close<T: Send + 'static>(files: Vec<T>) {
    if !files.is_empty() {
        let _ = tokio::task::spawn_blocking(move || drop(files)).await;
    }
}
