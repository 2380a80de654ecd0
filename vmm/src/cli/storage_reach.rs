//! Who can reach the storage of an image.

use block::Reach;
use control::disk_move::StorageReach;

/// Who can reach storage, as the API tells it.
pub(super) fn told(reach: Reach) -> StorageReach {
    match reach {
        Reach::ThisHost => StorageReach::ThisHost,
        Reach::OtherHosts => StorageReach::OtherHosts,
    }
}
