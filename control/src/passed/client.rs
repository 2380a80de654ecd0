//! The side of a client that passes files.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use hyper::Method;
use migration::observation::{Observation, Side};
use tokio::time::{sleep, timeout};

use super::message::{Answer, FILES_LIMIT, FileId, FileNote, KeptFiles, Passing, too_many};
use super::socket::Packets;
use crate::api::body::Accepted;
use crate::api::client::{Client, unreachable_vm};

/// How long a VM may take to take files in.
const TAKEN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A connection at which files are passed to a VM, which closes those that no request has taken when this is dropped.
#[derive(Debug)]
pub struct Passer {
    client: Client,
    /// None once an answer was not waited for, which would be taken for the next.
    packets: Option<Packets>,
}

impl Client {
    /// Connects to where files are passed to the VM.
    ///
    /// # Errors
    /// `file.not-taken` where the VM was started by a version that knows nothing of it, else as for [`Client::status`].
    pub async fn passer(&self) -> Result<Passer, Observation> {
        // Whether it is there at all, which is told in detail.
        drop(self.connect().await?);
        let packets = timeout(TAKEN, self.connect_files())
            .await
            .unwrap_or_else(|_| Err(self.not_responding(TAKEN)))?;
        Ok(Passer {
            client: self.clone(),
            packets: Some(packets),
        })
    }

    async fn connect_files(&self) -> Result<Packets, Observation> {
        let failed = |e: io::Error| unreachable_vm(&self.name, e);
        loop {
            match self.runtime.connect_files(&self.name) {
                Ok(socket) => return Packets::new(socket).map_err(failed),
                // As many wait already as may.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(LOOK_AGAIN).await,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let message = format!(
                        "the VM {:?} takes no files in: the version that started it knows nothing of that",
                        self.name
                    );
                    return Err(Observation::new(Side::Client, "file.not-taken", message));
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// `GET /vm/files`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn kept_files(&self) -> Result<KeptFiles, Observation> {
        self.call(Method::GET, "/vm/files", None::<&()>).await
    }

    /// `DELETE /vm/files/ID`
    ///
    /// # Errors
    /// As for [`Client::status`].
    pub async fn let_go_file(&self, id: FileId) -> Result<Accepted, Observation> {
        let path = format!("/vm/files/{id}");
        self.call(Method::DELETE, &path, None::<&()>).await
    }
}

impl Passer {
    /// Passes open files, eight at most: an identifier for each, in their order. The VM keeps all of them or none.
    ///
    /// Where this is dropped before it has an answer, or fails but for what the VM observed, the connection is closed.
    ///
    /// # Errors
    /// What the VM observed; `file.too-many`, `vm.unreachable`, `vm.not-responding`.
    pub async fn pass(
        &mut self,
        files: &[(FileNote, BorrowedFd<'_>)],
    ) -> Result<Vec<FileId>, Observation> {
        if files.len() > FILES_LIMIT {
            return Err(too_many(Side::Client, files.len()));
        }
        let unreachable = |why: &dyn std::fmt::Display| unreachable_vm(&self.client.name, why);
        let descriptors: Vec<_> = files.iter().map(|(_, descriptor)| *descriptor).collect();
        let passing = Passing::new(files.iter().map(|(note, _)| note.clone()).collect());
        let packets = self.packets.take();
        let packets = packets.ok_or_else(|| unreachable(&"an earlier answer did not come"))?;
        let answer = match timeout(TAKEN, exchange(&packets, &passing, &descriptors)).await {
            Ok(exchanged) => exchanged.map_err(|e| unreachable(&e))?,
            Err(_) => return Err(self.client.not_responding(TAKEN)),
        };
        match answer {
            Answer::Kept(ids) if ids.len() != files.len() => {
                let (answered, passed) = (ids.len(), files.len());
                let why = format!("it answers with {answered} identifiers for {passed} files");
                Err(unreachable(&why))
            }
            Answer::Kept(ids) => {
                self.packets = Some(packets);
                Ok(ids)
            }
            Answer::Refused(why) => {
                self.packets = Some(packets);
                Err(why)
            }
        }
    }
}

async fn exchange(
    packets: &Packets,
    passing: &Passing,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Answer> {
    let text = serde_json::to_vec(passing)?;
    let sent = packets.send(&text, descriptors).await;
    if let Err(e) = sent
        && !matches!(
            e.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        )
    {
        return Err(e);
    }
    // One that was turned away has an answer all the same.
    let packet = packets.receive().await?;
    if packet.text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&packet.text)?)
}
