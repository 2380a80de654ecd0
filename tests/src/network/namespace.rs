//! A network namespace that lives as long as somebody in the test holds it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// A network of its own: nothing in it is seen from outside, and nothing outside from within.
///
/// It has no name in `/run/netns`: the kernel takes it away, with all interfaces in it, when its last
/// process and this handle are gone, however the test ends.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// An empty namespace with its loopback interface up.
    ///
    /// # Errors
    /// When the machine gives none (not root, or forbidden).
    pub fn new() -> Result<Self> {
        // Only a process that is alive can be asked for its namespace; this one ends with its input.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start unshare")?;
        let mut said = String::new();
        if let Some(out) = holder.stdout.take() {
            BufReader::new(out)
                .read_line(&mut said)
                .context("read from unshare")?;
        }
        let handle = File::open(format!("/proc/{}/ns/net", holder.id()));
        drop(holder.stdin.take());
        holder.wait().context("wait for unshare")?;
        ensure!(said == "made\n", "no network namespace can be made");
        let this = Self {
            handle: handle.context("open the namespace")?,
        };
        // Whatever is set up in it must never be set up on the machine itself.
        ensure!(
            this.id()? != id_of(Path::new("/proc/self/ns/net"))?,
            "the namespace made is the one of this process"
        );
        // No router solicitations and the like: what is on the wire is what the test put there.
        this.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        this.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Runs `work` on a thread that is in this namespace: sockets that it makes and processes that it
    /// starts belong here for good, whoever uses them later.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("thread enters the namespace");
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Path by which other programs can enter it, as long as this process holds it.
    pub fn path(&self) -> PathBuf {
        let fd = self.handle.as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()))
    }

    /// A command that runs `program` here.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` with these words.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.tool("ip", words)
    }

    /// Runs `tc` with these words.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn tc(&self, words: &str) -> Result<String> {
        self.tool("tc", words)
    }

    /// Runs `ip -json` or `bridge -json`; the objects that it lists.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn list(&self, tool: &str, words: &str) -> Result<Vec<Value>> {
        let text = self.tool(tool, &format!("-json {words}"))?;
        serde_json::from_str(&text).with_context(|| format!("{tool} {words} said {text:?}"))
    }

    /// A file below `/proc/net`, as it looks from here.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{file}");
        self.enter(|| std::fs::read_to_string(&path))
            .with_context(|| format!("read {path}"))
    }

    /// Names of its interfaces, sorted.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let links = self.list("ip", "link show")?;
        let mut names: Vec<_> = links
            .iter()
            .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    fn tool(&self, tool: &str, words: &str) -> Result<String> {
        let mut command = Command::new(tool);
        command.args(words.split_whitespace()).stdin(Stdio::null());
        let output = self
            .enter(|| command.output())
            .with_context(|| format!("start {tool}"))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{tool} {words}: {}", error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A kernel that does not know the setting does not need it either.
    fn write_sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        let _ = self.enter(|| std::fs::write(path, value));
    }

    fn id(&self) -> Result<u64> {
        id_of(&self.path())
    }
}

/// What the kernel knows a namespace by.
fn id_of(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::requirements::lacks_network;
    use crate::{eventually, skip};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn sockets_and_processes_stay_in_the_namespace_they_were_made_in() {
        if let Some(reason) = lacks_network() {
            skip!("{reason}");
        }
        let namespace = Namespace::new().unwrap();
        namespace.ip("address add 192.0.2.1/24 dev lo").unwrap();
        let listener = namespace
            .enter(|| TcpListener::bind("192.0.2.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let near = namespace.enter(|| TcpStream::connect(address));
        assert!(near.is_ok(), "{near:?}");
        assert!(TcpListener::bind("192.0.2.1:0").is_err());
        let seen = namespace
            .command(Path::new("ip"))
            .args(["-4", "address", "show", "dev", "lo"])
            .output()
            .unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.contains("192.0.2.1"), "{seen}");
    }

    #[test]
    fn interfaces_go_with_the_namespace() {
        if let Some(reason) = lacks_network() {
            skip!("{reason}");
        }
        let (stays, goes) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let before = stays.interfaces().unwrap();
        let path = goes.path();
        stays
            .ip(&format!(
                "link add wire type veth peer name wire netns {}",
                path.display()
            ))
            .unwrap();
        assert!(goes.interfaces().unwrap().contains(&"wire".to_owned()));
        drop(goes);
        // The kernel takes a namespace apart in the background; the other end of its wire goes with it.
        let gone = eventually(PATIENCE, || {
            (stays.interfaces().unwrap() == before).then_some(())
        });
        assert_eq!(gone, Some(()), "{:?}", stays.interfaces());
    }
}
