//! Requests to a backend, their memory and their ends, and the backends that there are.
#![allow(dead_code)] // Each test file uses its part.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::tracker::ChangeMap;
use block::uring::Begin;
use block::{
    Access, Action, Backend, BlockDevice, Buffer, Content, Durability, Error, Job, Pool, RawImage,
    RingDisk, Uring,
};

pub const LIMIT: Duration = Duration::from_secs(20);

/// How a request ended.
#[derive(Debug)]
pub struct End<N> {
    pub name: N,
    /// `None` when it was parked.
    pub result: Option<block::Result<()>>,
    /// What is in its memory.
    pub bytes: Vec<u8>,
}

impl<N> End<N> {
    /// The name of a request that was done, and the first byte of its memory, 0 without any; no byte when it was parked.
    pub fn first(self) -> (N, Option<u8>) {
        let Some(result) = self.result else {
            return (self.name, None);
        };
        result.unwrap();
        (self.name, Some(self.bytes.first().copied().unwrap_or(0)))
    }
}

/// A request with memory of its own, which tells its end.
pub struct Request<N> {
    name: N,
    action: Action,
    buffers: Vec<Buffer<'static>>,
    ends: Sender<End<N>>,
}

impl<N: Send> Request<N> {
    fn tell(self, result: Option<block::Result<()>>) {
        let mut bytes = Vec::new();
        for buffer in &self.buffers {
            let mut piece = vec![0; buffer.len()];
            buffer.as_volatile().copy_to(&mut piece[..]);
            bytes.extend(piece);
        }
        let _ = self.ends.send(End {
            name: self.name,
            result,
            bytes,
        });
    }
}

impl<N: Send> Job for Request<N> {
    fn action(&self) -> Action {
        self.action
    }

    fn buffers(&self) -> &[Buffer<'_>] {
        &self.buffers
    }

    fn complete(self: Box<Self>, result: block::Result<()>) {
        self.tell(Some(result));
    }

    fn park(self: Box<Self>) {
        self.tell(None);
    }
}

/// Where requests tell their ends.
pub struct Ends<N> {
    told: Sender<End<N>>,
    /// Any thread may wait.
    ends: Mutex<Receiver<End<N>>>,
}

impl<N: Send> Ends<N> {
    pub fn new() -> Self {
        let (told, ends) = channel();
        Self {
            told,
            ends: Mutex::new(ends),
        }
    }

    /// A request with `bytes`, if it has any, in two pieces `skew` bytes behind a page of memory.
    pub fn request(&self, name: N, action: Action, bytes: &[u8], skew: usize) -> Box<Request<N>> {
        // For ever, as this is a test.
        let memory = Box::leak(vec![0; bytes.len() + 2 * 4096].into_boxed_slice());
        let start = memory.as_ptr().align_offset(4096) + skew;
        let memory = &mut memory[start..start + bytes.len()];
        memory.copy_from_slice(bytes);
        let (one, other) = memory.split_at_mut(bytes.len() / 1024 * 512);
        let buffers = [one, other].map(Buffer::new);
        let buffers = buffers.into_iter().filter(|buffer| !buffer.is_empty());
        Box::new(Request {
            name,
            action,
            buffers: buffers.collect(),
            ends: self.told.clone(),
        })
    }

    pub fn read(&self, name: N, offset: u64, len: usize) -> Box<Request<N>> {
        self.request(name, Action::Read { offset }, &vec![0xee; len], 0)
    }

    pub fn write(&self, name: N, offset: u64, bytes: &[u8]) -> Box<Request<N>> {
        let durability = Durability::Flushed;
        self.request(name, Action::Write { offset, durability }, bytes, 0)
    }

    pub fn other(&self, name: N, action: Action) -> Box<Request<N>> {
        self.request(name, action, &[], 0)
    }

    #[track_caller]
    pub fn end(&self) -> End<N> {
        self.ends.lock().unwrap().recv_timeout(LIMIT).unwrap()
    }

    pub fn is_silent(&self) -> bool {
        self.ends.lock().unwrap().try_recv().is_err()
    }
}

/// What carries requests out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pool,
    Ring,
    TrackedRing,
}

pub const KINDS: [Kind; 3] = [Kind::Pool, Kind::Ring, Kind::TrackedRing];

pub fn open(path: &Path) -> Arc<RawImage> {
    Arc::new(RawImage::open(path, Access::ReadWrite, Content::Raw).unwrap())
}

/// The ring of an image; nothing where there is none.
pub fn ring_disk(image: &Arc<RawImage>) -> Option<Arc<RingDisk>> {
    let begin = Begin {
        ring: || {},
        hand: || {},
    };
    let made = image
        .open_direct()
        .and_then(|()| RingDisk::new(image.clone(), begin));
    match made {
        Ok(disk) => Some(Arc::new(disk)),
        Err(error @ (Error::NoRing { .. } | Error::NotDirect { .. })) => {
            println!("skipped: {error}: {:?}", std::error::Error::source(&error));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A backend of an image; nothing where there is none of its kind.
pub fn backend(kind: Kind, image: &Arc<RawImage>) -> Option<Arc<dyn Backend>> {
    Some(match kind {
        Kind::Pool => Arc::new(Pool::new(image.clone(), || {}).unwrap()),
        Kind::Ring => Arc::new(Uring::new(ring_disk(image)?)),
        Kind::TrackedRing => {
            let map = Arc::new(ChangeMap::new(image.size()));
            Arc::new(Uring::tracked(ring_disk(image)?, map))
        }
    })
}

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}
