//! What a disk is to do for each request (virtio 1.2, 5.2.6).

use std::sync::atomic::Ordering;

use block::{Action, Durability, SECTOR_SIZE, ZeroMode};
use virtio_bindings::virtio_blk::*;

use super::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS};
use super::{Block, ID, MOST_COMPLAINTS};
use crate::virtio::backing::Backing;
use crate::virtio::chain::{BadRequest, Chain};
use crate::virtio::disk_requests::{Asked, DiskRequests, Next};

/// Bytes of a request's header: type, reserved, sector.
const HEADER: u64 = 16;
/// Bytes of a range to be discarded or zeroed: sector, count, flags.
const RANGE: usize = 16;

/// How a request ended, as its status byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    const fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What comes of looking at a request: an action of the disk, or its end with so many bytes written.
enum Step {
    Act(Action),
    End(Status, u64),
}

/// A request that changes nothing and fails, or is not known.
const fn refused(status: Status) -> Step {
    Step::End(status, 0)
}

/// The next step of a request, in the words of the transport; the status is written when it is over.
fn next(chain: &Chain<'_>, asked: &Asked, step: Step) -> Result<Next, BadRequest> {
    let (status, written) = match step {
        Step::Act(action) => return Ok(Next::Submit(action)),
        Step::End(status, written) => (status, written),
    };
    let room = asked.room;
    chain.write_at(room, &[status.byte()])?;
    // A driver takes the length for the bytes that are valid from the start on; the status lies
    // behind them only when everything before it was written.
    let written = if written == room { room + 1 } else { written };
    Ok(Next::Complete(u32::try_from(written).unwrap_or(u32::MAX)))
}

impl Block {
    fn done(&self, result: block::Result<()>) -> Status {
        match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                if self.complaints.fetch_add(1, Ordering::Relaxed) < MOST_COMPLAINTS {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "disk request failed"
                    );
                } else {
                    // Stays far from wrapping around.
                    self.complaints.store(MOST_COMPLAINTS, Ordering::Relaxed);
                }
                Status::IoError
            }
        }
    }

    /// First byte of a sector, when `len` bytes from there on are on the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_SIZE)?;
        (offset.checked_add(len)? <= self.backing.size()).then_some(offset)
    }

    /// As [`Block::range`], for whole sectors only.
    fn sectors(&self, sector: u64, len: u64) -> Option<u64> {
        self.range(sector, len)
            .filter(|_| len.is_multiple_of(SECTOR_SIZE))
    }

    fn read(&self, chain: &mut Chain<'_>, sector: u64, len: u64) -> Step {
        let Some(offset) = self.sectors(sector, len) else {
            return refused(Status::IoError);
        };
        chain.writable_buffers(0, len);
        Step::Act(Action::Read { offset })
    }

    fn write(&self, chain: &mut Chain<'_>, sector: u64, durability: Durability) -> Step {
        let len = chain.readable_len() - HEADER;
        let Some(offset) = self.sectors(sector, len) else {
            return refused(Status::IoError);
        };
        chain.readable_buffers(HEADER, len);
        Step::Act(Action::Write { offset, durability })
    }

    /// Discards, or zeroes, the next of the ranges that the request holds.
    fn change_range(&self, chain: &Chain<'_>, asked: &Asked) -> Result<Step, BadRequest> {
        let len = chain.readable_len() - HEADER;
        let count = len / RANGE as u64;
        if count == 0 || !len.is_multiple_of(RANGE as u64) || count > u64::from(MAX_RANGES) {
            return Ok(refused(Status::IoError));
        }
        if asked.done == count && asked.durability == Durability::Immediate {
            return Ok(Step::Act(Action::Flush));
        }
        if asked.done >= count {
            return Ok(Step::End(Status::Ok, 0));
        }
        let mut raw = [0; RANGE];
        chain.read_at(HEADER + asked.done * RANGE as u64, &mut raw)?;
        let raw = u128::from_le_bytes(raw);
        // The three little-endian fields: 64 bits of sector, 32 of count, 32 of flags.
        let (sector, sectors, flags) = (raw as u64, (raw >> 64) as u32, (raw >> 96) as u32);
        let len = u64::from(sectors) * SECTOR_SIZE;
        let Some(offset) = self.range(sector, len) else {
            return Ok(refused(Status::IoError));
        };
        // A discard has no flags to set (5.2.6.2).
        let (known, most) = match asked.request {
            VIRTIO_BLK_T_DISCARD => (0, MAX_DISCARD_SECTORS),
            _ => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_ZERO_SECTORS),
        };
        if flags & !known != 0 {
            return Ok(refused(Status::Unsupported));
        }
        if sectors > most {
            return Ok(refused(Status::IoError));
        }
        let mode = if flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP == 0 {
            ZeroMode::KeepAllocated
        } else {
            ZeroMode::MayUnmap
        };
        Ok(Step::Act(match asked.request {
            VIRTIO_BLK_T_DISCARD => Action::Discard { offset, len },
            _ => Action::WriteZeroes { offset, len, mode },
        }))
    }

    fn get_id(&self, chain: &Chain<'_>, room: u64) -> Result<Step, BadRequest> {
        let mut id = [0; ID];
        id[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        let len = room.min(ID as u64);
        chain.write_at(0, &id[..len as usize])?;
        Ok(Step::End(Status::Ok, len))
    }
}

impl DiskRequests for Block {
    fn backing(&self) -> &Backing {
        &self.backing
    }

    fn begin(&self, chain: &mut Chain<'_>, features: u64) -> Result<(Asked, Next), BadRequest> {
        let mut header = [0; HEADER as usize];
        chain.read_at(0, &mut header)?;
        let header = u128::from_le_bytes(header);
        // The fields: 32 bits of type, 32 reserved, 64 of sector, little-endian.
        let (request, sector) = (header as u32, (header >> 64) as u64);
        // The status is the last byte that the device may write.
        let room = chain
            .writable_len()
            .checked_sub(1)
            .ok_or_else(|| chain.too_short())?;
        let asked = Asked {
            request,
            room,
            // A driver that cannot flush takes every completed change for durable.
            durability: if features & (1 << VIRTIO_BLK_F_FLUSH) == 0 {
                Durability::Immediate
            } else {
                Durability::Flushed
            },
            done: 0,
        };
        let step = match request {
            VIRTIO_BLK_T_IN => self.read(chain, sector, room),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.backing.read_only() =>
            {
                refused(Status::IoError)
            }
            VIRTIO_BLK_T_OUT => self.write(chain, sector, asked.durability),
            VIRTIO_BLK_T_FLUSH => Step::Act(Action::Flush),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.change_range(chain, &asked)?,
            VIRTIO_BLK_T_GET_ID => self.get_id(chain, room)?,
            _ => refused(Status::Unsupported),
        };
        Ok((asked, next(chain, &asked, step)?))
    }

    fn ended(
        &self,
        chain: &mut Chain<'_>,
        asked: &mut Asked,
        result: block::Result<()>,
    ) -> Result<Next, BadRequest> {
        asked.done += 1;
        let is_read = asked.request == VIRTIO_BLK_T_IN;
        if is_read {
            // Also after a failure: part of the memory may have been filled.
            chain.mark_written(0, asked.room);
        }
        let step = match self.done(result) {
            Status::Ok if is_read => Step::End(Status::Ok, asked.room),
            Status::Ok
                if matches!(
                    asked.request,
                    VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                ) =>
            {
                self.change_range(chain, asked)?
            }
            status => Step::End(status, 0),
        };
        next(chain, asked, step)
    }
}
