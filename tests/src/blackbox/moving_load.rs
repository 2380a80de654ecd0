//! A guest under a load that is judged, whose disk moves to and fro on its host.

use std::path::Path;

use super::moving_disk::{Load, images_open, move_args};
use super::{Guest, Pair, Vms, images};

/// Every write that the guest was told is done, at any depth, is on the image that it ends with, after so many moves with
/// these arguments; `moved` looks at the image after each.
pub fn loses_nothing(rounds: usize, more: &[&str], moved: impl Fn(&Path)) {
    let pair = Pair::new();
    let host = &pair.source;
    let first = images::sparse(host.path(), "data.raw", 32 << 20);
    let load = "depth=16,start=fill,length=12M,read=30,verify=10,discard=10,zeroes=10,size=4K/16K/64K,flush=16,\
                interval_ms=100,count=12000";
    let guest = Guest::dirtying().memory("192MiB").disk_load(&first, load);
    let mut load = Load::on(host.run("guest", &guest));
    let mut at = first;
    for round in 0..rounds {
        let format = ["qcow2", "raw"][round % 2];
        let next = host.path().join(format!("image-{round}.{format}"));
        let args = ["--format", format, "--after", "delete"];
        let args = [&args[..], more].concat();
        let _ = host.vmm(move_args("guest:data", &next, &args)).success();
        assert!(!at.exists());
        moved(&next);
        at = next;
    }
    let open = images_open(host.pid("guest"));
    assert!(open.iter().all(|open| *open == at), "{open:?}");
    load.comes_to_its_end();
    host.press("guest", b'q');
    host.ended("guest");
    load.has_lost_nothing_at(&at);
    pair.is_clean();
}
