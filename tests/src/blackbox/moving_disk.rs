//! A guest whose disk moves to other images on its host.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::leftovers::open_files;
use super::{Console, Guest, Pair, Vms, disk_load, eventually, holds, images};
use crate::Host;
use crate::disk_judge::{Judge, Moment};
use crate::probe::{DiskCounts, DiskReady};
use crate::process::Process;

/// Bytes of the disk.
pub const SIZE: u64 = 64 << 20;
/// A load that verifies itself.
pub const VERIFY: &str = "block=verify,size=8M block_rate=400";
/// Slow enough that there is time to do something while it copies.
pub const SLOW: &[&str] = &["--bandwidth", "8MiB/s"];

/// A load that goes on where another one ended, and verifies that.
pub const CHECK: &str = "block=check,size=8M block_rate=400";

/// Options of an image, by its name.
pub fn options_of(path: &Path) -> &'static str {
    match path.extension().is_some_and(|name| name == "qcow2") {
        true => "id=data,format=qcow2",
        false => "id=data",
    }
}

/// A guest that writes and verifies, and the disk that it has.
pub struct Scene {
    /// Two hosts, of which the first has it.
    pub pair: Pair,
    /// The guest's.
    pub console: Console,
    /// The image that it began with.
    pub disk: PathBuf,
}

impl Scene {
    /// With a guest that writes its memory, too.
    pub fn verifying() -> Self {
        Self::with(&Guest::dirtying(), VERIFY)
    }

    /// With a guest that has these words for its disk.
    pub fn with(guest: &Guest, words: &str) -> Self {
        let pair = Pair::new();
        let disk = images::sparse(pair.source.path(), "data.raw", SIZE);
        let file = OpenOptions::new().write(true).open(&disk).expect("image");
        file.write_all_at(&[0xc7; 24 << 20], 32 << 20)
            .expect("content");
        let guest = guest.clone().disk_with(&disk, "id=data", words);
        let mut console = pair.source.run("guest", &guest);
        console.verifies_blocks();
        Self {
            pair,
            console,
            disk,
        }
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.pair.source
    }

    /// A path beside the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.host().path().join(name)
    }

    /// Moves the disk, to its end.
    #[track_caller]
    pub fn moves(&self, to: &Path, more: &[&str]) -> Value {
        let run = self.host().vmm(move_args("guest:data", to, more)).success();
        let job = run.json_lines().pop().expect("a job");
        assert_eq!(job["result"]["outcome"], "completed", "{job:#}");
        job
    }

    /// A move that goes on, with its job.
    #[track_caller]
    pub fn begins(&self, to: &Path, more: &[&str]) -> (Process, String) {
        let running = self.host().spawn(move_args("guest:data", to, more));
        let id = eventually("the move copies", || {
            let jobs = self.host().jobs("guest");
            let job = jobs.into_iter().next_back()?;
            let copies = job["kind"] == "disk-move"
                && job["state"] == "running"
                && job["progress"]["done_bytes"].as_u64() > Some(0);
            copies.then(|| job["id"].as_str().expect("id").to_owned())
        });
        (running, id)
    }

    /// A job.
    pub fn job(&self, id: &str) -> Value {
        let run = self.host().vmm(["jobs", "guest", id, "--json"]).success();
        run.json_lines().pop().expect("a job")
    }

    /// Bytes that a job has copied.
    pub fn done(&self, id: &str) -> u64 {
        let job = self.job(id);
        job["progress"]["done_bytes"].as_u64().expect("bytes")
    }

    /// What `vmm disk jobs` tells.
    #[track_caller]
    pub fn disk_jobs(&self, args: &[&str]) -> Vec<Value> {
        let all = ["disk", "jobs", "guest", "--json"].iter().chain(args);
        self.host().vmm(all.copied()).success().json_lines()
    }

    /// The disk is at `path`, and no other image is open.
    #[track_caller]
    pub fn is_at(&self, path: &Path) {
        let status = self.host().status("guest");
        let disk = &status["disks"][0];
        assert_eq!(disk["path"], path.display().to_string(), "{status:#}");
        let open = images_open(self.host().pid("guest"));
        assert!(
            open.iter().all(|open| open == path) && !open.is_empty(),
            "{open:?}"
        );
    }

    /// The guest writes on, and finds what it wrote.
    #[track_caller]
    pub fn goes_on(&mut self) {
        self.console.verifies_blocks();
        self.console.verifies_ledger();
    }

    /// The guest runs again from `path`, and finds what it wrote.
    #[track_caller]
    pub fn starts_anew_from(&self, path: &Path) {
        let guest = Guest::idle().disk_with(path, options_of(path), CHECK);
        let mut console = self.host().run("again", &guest);
        console.verifies_blocks();
        self.host().stop("again");
    }

    /// The guest that writes and verifies runs again from `path`, where it ended otherwise.
    #[track_caller]
    pub fn is_run_again_from(&mut self, path: &Path) {
        holds("the VM is gone", || self.host().processes().is_empty());
        let guest = Guest::dirtying().disk_with(path, options_of(path), CHECK);
        self.console = self.host().run("guest", &guest);
        self.console.verifies_blocks();
    }

    /// A move that goes on is in pass `pass` at least, and waits there.
    #[track_caller]
    pub fn waits_in_pass(&self, id: &str, pass: u64) {
        eventually("the pass begins", || {
            (self.job(id)["progress"]["pass"].as_u64() >= Some(pass)).then_some(())
        });
        let told = self.disk_jobs(&["--pause", id]);
        assert_eq!(told[0]["state"], "paused", "{told:?}");
    }

    /// Nobody runs a guest from `image`, and why.
    #[track_caller]
    pub fn is_refused(&self, image: &Path, why: &str) {
        let path = image.display().to_string();
        let run = ["run", "refused", "--detach", "--disk", &path];
        let said = self.host().vmm(run).expect_code(1).stderr;
        assert!(said.contains(why), "{said}");
    }
}

/// Arguments that move a disk.
pub fn move_args(disk: &str, to: &Path, more: &[&str]) -> Vec<String> {
    let to = to.display().to_string();
    let args = ["disk", "move", disk, "--to", &to, "--json"];
    let all = args.into_iter().chain(more.iter().copied());
    all.map(str::to_owned).collect()
}

/// Images that a process has open.
pub fn images_open(pid: u32) -> Vec<PathBuf> {
    let is_image = |path: &PathBuf| {
        let text = path.to_string_lossy();
        text.contains(".raw") || text.contains(".qcow2")
    };
    open_files(pid).into_iter().filter(is_image).collect()
}

/// Bytes that a file takes.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("image").blocks() * 512
}

/// What the guest never touches is what it was.
pub fn holds_its_content(raw: &Path) {
    let bytes = fs::read(raw).expect("image");
    let range = (32 << 20)..(56 << 20);
    assert!(bytes[range].iter().all(|byte| *byte == 0xc7));
}

/// What is recorded of images that are served at `host`.
#[track_caller]
pub fn served(host: &Host) -> Vec<Value> {
    let run = host.vmm(["disk", "serve", "--list", "--json"]);
    run.success().json_lines()
}

/// What is missing of the disk of the guest at `host`.
#[track_caller]
pub fn missing(host: &Host) -> Option<Value> {
    let status = host.status("guest");
    let missing = status["disks"][0]["missing"].clone();
    (!missing.is_null()).then_some(missing)
}

/// Waits until the client of the one image that is served at `host` has said that it is whole, and nobody serves it any more.
#[track_caller]
pub fn is_released(host: &Host) {
    eventually("its server is told so", || {
        let served = served(host);
        let is_over = served[0]["released"] == true && served[0]["pid"].is_null();
        is_over.then_some(())
    });
}

/// A guest whose disk is under a load, every change of which is known.
pub struct Load {
    /// The guest's console.
    pub console: Console,
    ready: DiskReady,
    end: Option<DiskCounts>,
}

impl Load {
    /// The load that the guest of `console` has, when it is ready.
    #[track_caller]
    pub fn on(mut console: Console) -> Self {
        let ready = disk_load::ready(&mut console, 0);
        Self {
            console,
            ready,
            end: None,
        }
    }

    /// Waits until it has made so many more changes.
    #[track_caller]
    pub fn goes_on(&mut self, changes: u64) {
        disk_load::goes_on(&mut self.console, 0, changes);
    }

    /// Changes that the guest was told are done.
    pub fn acknowledged(&mut self) -> u64 {
        let counts = disk_load::counts(&mut self.console, 0);
        counts.last().map_or(0, |counts| counts.acked)
    }

    /// Waits until it is over; no request has failed.
    #[track_caller]
    pub fn comes_to_its_end(&mut self) {
        let end = eventually("the load ends", || {
            let counts = disk_load::counts(&mut self.console, 0);
            counts.into_iter().find(|counts| counts.end)
        });
        self.console.is_unharmed();
        assert_eq!((end.errors, end.faults), (0, 0), "{end:?}");
        assert_eq!(end.acked, end.submitted, "{end:?}");
        self.end = Some(end);
    }

    /// Every write that the guest was told is flushed is on this image, and none is torn.
    #[track_caller]
    pub fn has_lost_nothing_at(&self, image: &Path) {
        let end = self.end.as_ref().expect("its end");
        let judge = Judge::new(&self.ready).expect("judge");
        let moment = Moment {
            flushed: end.flushed,
            submitted: Some(end.submitted),
        };
        let wrong = judge.judge(image, moment).expect("image");
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
