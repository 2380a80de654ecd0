//! What every layer does with what it has no say in.

use std::sync::Arc;

use super::tracker::changes::ChangeMap;
use crate::{
    Arrived, BlockDevice, Buffer, Discarded, Durability, Extent, Identity, Result, ZeroMode,
};

/// A block device over another, to which it passes on everything that it does not do itself.
///
/// Each method is that of [`BlockDevice`] with its name.
pub trait Layer: Send + Sync {
    /// What the layer is called where a stack is told.
    const NAME: &'static str;

    /// The device below.
    fn inner(&self) -> &dyn BlockDevice;

    /// Where it marks changes, if it does that and nothing else: a backend may do it in its place.
    fn marks(&self) -> Option<&Arc<ChangeMap>> {
        None
    }

    /// As [`BlockDevice::read`].
    ///
    /// # Errors
    /// As there.
    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        self.inner().read(buffers, offset)
    }

    /// As [`BlockDevice::write`].
    ///
    /// # Errors
    /// As there.
    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        self.inner().write(buffers, offset, durability)
    }

    /// As [`BlockDevice::flush`].
    ///
    /// # Errors
    /// As there.
    fn flush(&self) -> Result<()> {
        self.inner().flush()
    }

    /// As [`BlockDevice::has_unflushed_writes`].
    fn has_unflushed_writes(&self) -> bool {
        self.inner().has_unflushed_writes()
    }

    /// As [`BlockDevice::discard`].
    ///
    /// # Errors
    /// As there.
    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        self.inner().discard(offset, len)
    }

    /// As [`BlockDevice::write_zeroes`].
    ///
    /// # Errors
    /// As there.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.inner().write_zeroes(offset, len, mode)
    }

    /// As [`BlockDevice::extents`].
    ///
    /// # Errors
    /// As there.
    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        self.inner().extents(offset, len, limit)
    }

    /// As [`BlockDevice::tell_arrivals`].
    fn tell_arrivals(&self, arrived: Arrived) {
        self.inner().tell_arrivals(arrived);
    }
}

impl<L: Layer> BlockDevice for L {
    fn size(&self) -> u64 {
        self.inner().size()
    }

    fn read_only(&self) -> bool {
        self.inner().read_only()
    }

    fn has_unflushed_writes(&self) -> bool {
        Layer::has_unflushed_writes(self)
    }

    fn read(&self, buffers: &[Buffer<'_>], offset: u64) -> Result<()> {
        Layer::read(self, buffers, offset)
    }

    fn write(&self, buffers: &[Buffer<'_>], offset: u64, durability: Durability) -> Result<()> {
        Layer::write(self, buffers, offset, durability)
    }

    fn flush(&self) -> Result<()> {
        Layer::flush(self)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<Discarded> {
        Layer::discard(self, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        Layer::write_zeroes(self, offset, len, mode)
    }

    fn extents(&self, offset: u64, len: u64, limit: usize) -> Result<Vec<Extent>> {
        Layer::extents(self, offset, len, limit)
    }

    fn tell_arrivals(&self, arrived: Arrived) {
        Layer::tell_arrivals(self, arrived);
    }

    fn identity(&self) -> Identity {
        self.inner().identity()
    }
}
