//! What must not change without a new protocol version: a change here does not compile.

use crate::wire::batch::{BATCH_LEN, BATCH_MAGIC, MAX_PAYLOAD, MAX_RANGES, RANGE_LEN};
use crate::wire::blocks::{BLOCK_RANGE_LEN, SECTOR};
use crate::wire::control::{CONTROL_LEN, CONTROL_MAGIC};
use crate::wire::hello::HELLO_LEN;
use crate::wire::pull::{
    MAX_ANSWER, MAX_ASKED, MAX_LANES, MAX_MAPPED, MAX_UNITS, PULL_LEN, PULL_MAGIC,
};
use crate::wire::{MAX_REGIONS, MAX_STATE, MAX_STREAMS, MAX_VOLUMES, MIN_VERSION, VERSION};

const _: () = {
    assert!(VERSION == 4 && MIN_VERSION == 1);
    assert!(HELLO_LEN == 80);
    assert!(CONTROL_LEN == 24 && CONTROL_MAGIC == 0x436d_6d76);
    assert!(BATCH_LEN == 32 && BATCH_MAGIC == 0x506d_6d76);
    assert!(RANGE_LEN == 24 && MAX_RANGES == 512);
    assert!(BLOCK_RANGE_LEN == 24 && SECTOR == 512 && MAX_VOLUMES == 64);
    assert!(crate::vm::BLOCK_SIZE == 64 << 10 && crate::blocks::STRIPE_BLOCKS == 32);
    assert!(MAX_PAYLOAD == 2 << 20 && MAX_STATE == 64 << 20);
    assert!(PULL_LEN == 40 && PULL_MAGIC == 0x516d_6d76 && MAX_UNITS == 32);
    assert!(MAX_ANSWER == 2 << 20 && MAX_MAPPED == 512 << 10 && MAX_ASKED == 64 && MAX_LANES == 8);
    assert!(MAX_REGIONS == 64 && MAX_STREAMS == 16);
    assert!(crate::PAGE_SIZE == 4096 && crate::raw::STRIPE_PAGES == 512);
};
