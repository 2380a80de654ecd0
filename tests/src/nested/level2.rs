//! The guest of the nested job: a stock kernel, an initramfs with the drivers, and an ext4 root whose
//! first process writes, fsyncs and in the end verifies files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cpio::Archive;
use super::image;
use super::modules::Modules;
use super::rig::find_program;

/// Drivers that stock kernels have as modules, one these and another those, and the guest needs: disk and network on
/// virtio-mmio, the file system after the checksum that it asks for by a name, and the power button as an input
/// device.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "button",
    "evdev",
];

/// Kernel command line; `quiet`, because each byte on the serial port is an exit. The guest with a
/// network finds its address behind it: `network=ADDRESS/BITS`.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// What a transaction is, for the guest that commits them and the host that reads its disk.
pub const TRANSACTIONS: &[u8] = include_bytes!("guest/transactions.sh");

/// Size of the disk; sparse.
pub const DISK_SIZE: &str = "160M";

/// Archive that the guest's kernel unpacks and starts from; with `rdinit=/cache-init` it only reads its disk.
///
/// # Errors
/// When busybox or a module is missing.
pub fn initramfs(modules: &Modules) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    image::add_busybox(&mut archive)?;
    image::add_modules(&mut archive, modules, MODULES)?;
    archive.file(
        "drivers.sh",
        0o644,
        include_bytes!("guest/level2-drivers.sh"),
    );
    archive.file("init", 0o755, include_bytes!("guest/level2-init.sh"));
    archive.file("cache-init", 0o755, include_bytes!("guest/cache-init.sh"));
    Ok(archive.finish())
}

/// Archive of a guest that only resets its machine; it needs no module.
///
/// # Errors
/// When busybox is missing.
pub fn reset_initramfs() -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    image::add_busybox(&mut archive)?;
    archive.file("init", 0o755, include_bytes!("guest/reset-init.sh"));
    Ok(archive.finish())
}

/// What the ext4 root is made of.
#[derive(Debug)]
pub enum Node {
    /// An empty directory.
    Directory(&'static str),
    /// A program, or a library of one, at this path.
    Program(String, Vec<u8>),
}

/// Directories and programs of the ext4 root; `witness` is the program of that name.
///
/// # Errors
/// When busybox or the witness is missing.
pub fn root_tree(witness: &Path) -> Result<Vec<Node>> {
    let workload = include_bytes!("guest/level2-workload.sh").to_vec();
    let mut files = image::program_files("usr/bin/witness", witness)?;
    files.push(("bin/busybox".into(), image::busybox()?));
    files.push(("sbin/init".into(), workload));
    let transactions = include_bytes!("guest/transactions-init.sh").to_vec();
    files.push(("sbin/transactions".into(), transactions));
    files.push(("transactions.sh".into(), TRANSACTIONS.to_vec()));
    let directories = ["dev", "proc", "sys", "tmp", "data"].map(Node::Directory);
    let programs = files
        .into_iter()
        .map(|(path, content)| Node::Program(path, content));
    Ok(programs.chain(directories).collect())
}

/// Makes the guest's disk at `path`, an ext4 file system with `tree` in it.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make_disk(path: &Path, tree: &[Node]) -> Result<()> {
    let root = tempfile::tempdir().context("make a temporary directory")?;
    for node in tree {
        match node {
            Node::Directory(path) => make_directory(&root.path().join(path))?,
            Node::Program(path, content) => {
                let file = root.path().join(path);
                make_directory(file.parent().context("a program lies in a directory")?)?;
                std::fs::write(&file, content)
                    .with_context(|| format!("write {}", file.display()))?;
                make_executable(&file)?;
            }
        }
    }
    run(Command::new(find_program("mke2fs")?)
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(root.path())
        .arg(path)
        .arg(DISK_SIZE))?;
    Ok(())
}

/// Checks the file system on a disk without changing it.
///
/// # Errors
/// With what e2fsck found.
pub fn check_disk(path: &Path) -> Result<()> {
    run(Command::new(find_program("e2fsck")?)
        .args(["-f", "-n"])
        .arg(path))
    .map(drop)
}

/// Content of a file on a disk that nobody has mounted.
///
/// # Errors
/// When debugfs fails.
pub fn read_from_disk(disk: &Path, file: &str) -> Result<String> {
    run(Command::new(find_program("debugfs")?)
        .arg("-R")
        .arg(format!("cat {file}"))
        .arg(disk))
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", file.display()))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}
