//! A disk on storage that may be full: its guest waits until there is room, and is told of no error.
//!
//! A change for which there is no room fails with [`Error::NoRoom`], which parks the request; it is tried again when
//! the disk goes on elsewhere, or [`Room::give_up`] says that nobody makes room. A change that failed so may have been carried out in part, as
//! any that fails: made again, it is carried out whole.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::pass_on::Layer;
use crate::arrivals::Arrivals;
use crate::{Arrived, BlockDevice, Buffer, Discarded, Durability, Error, Result, ZeroMode};

/// What becomes of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changes {
    /// They are made.
    Made,
    /// They wait.
    Held,
    /// They are made, and fail where there is no room.
    Failing,
}

/// A layer that has changes wait for which there is no room.
pub struct Room {
    inner: Arc<dyn BlockDevice>,
    /// Held shared by changes that are under way.
    changes: RwLock<Changes>,
    is_full: AtomicBool,
    on_full: OnFull,
    arrivals: Arrivals,
}

/// What is called the first time that there is no room, on the thread of the request: it must not wait.
pub type OnFull = Box<dyn Fn() + Send + Sync>;

impl Room {
    /// Over `inner`, where there is room as far as is known.
    pub fn new(inner: Arc<dyn BlockDevice>, on_full: OnFull) -> Self {
        Self {
            inner,
            changes: RwLock::new(Changes::Made),
            is_full: AtomicBool::new(false),
            on_full,
            arrivals: Arrivals::default(),
        }
    }

    /// Whether there was no room for a change.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    /// Has all changes wait from here on; when this returns, none is under way.
    pub fn hold(&self) {
        self.set(Changes::Held);
    }

    /// Has what waits be tried again, and fail where there still is no room: nobody makes any.
    pub fn give_up(&self) {
        self.set(Changes::Failing);
        self.arrivals.arrive();
    }

    fn set(&self, to: Changes) {
        *self.changes.write().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn change<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let waits = || Error::NoRoom {
            path: PathBuf::from(self.inner.identity().name),
        };
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        if *changes == Changes::Held {
            return Err(waits());
        }
        change().map_err(|error| {
            if *changes == Changes::Failing || !error.is_no_room() {
                return error;
            }
            if !self.is_full.swap(true, Ordering::SeqCst) {
                (self.on_full)();
            }
            waits()
        })
    }
}

impl Layer for Room {
    const NAME: &'static str = "room";

    fn inner(&self) -> &dyn BlockDevice {
        &*self.inner
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.change(|| self.inner.write(buffers, offset, durability))
    }

    fn flush(&self) -> Result<()> {
        self.change(|| self.inner.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.change(|| self.inner.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.change(|| self.inner.write_zeroes(offset, len, mode))
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        self.arrivals.tell(Arc::clone(&arrived));
        self.inner.tell_arrivals(arrived);
    }
}
