//! The limit: the same bytes copied memfd to memfd over the same number of plain sockets.
//!
//! Nothing that copies memory through TCP on this machine can be faster by much, so a migration is
//! measured as a share of it.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use migration::transport::socket::tcp_socket;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::cpu::CpuWindow;
use super::engine::DiskCache;
use super::error::BenchError;
use super::guest::Workload;
use super::hosts::Hosts;
use super::link::Link;
use super::mapping::{self, Mapping, Pages};
use super::proc::Process;
use super::terms::Terms;
use super::turn::Copied;
use super::{engine, interrupt};

/// Most bytes that one call moves: the benchmark stops between two of them when it is interrupted.
const CHUNK: usize = 4 << 20;
const PAGE: usize = 4096;

/// One timed copy of as much random data as a guest with `workload` holds. Such a guest runs beside it:
/// verifying its memory takes a CPU and the caches from the copy, as the moved one takes them from its
/// migration.
pub(super) fn run(
    hosts: &Hosts,
    workload: &Workload,
    terms: &Terms<'_>,
    streams: u8,
    pages: Pages,
) -> Result<Copied, BenchError> {
    let bytes = workload.data_bytes();
    let mut beside = engine::start(hosts, "spinner", workload, &[], DiskCache::Host)?;
    let source = Mapping::new(bytes, Pages::Populated)?;
    source.fill_random()?;
    mapping::warm(terms.warmth)?;
    let destination = Mapping::new(bytes, pages)?;
    beside.forget_gaps()?;
    let cpu = CpuWindow::open(Process::new(std::process::id()), Vec::new())?;
    let took = copy(&source, &destination, streams, terms.link)?;
    Ok(Copied {
        total_ms: took.as_secs_f64() * 1000.0,
        cpu_s: cpu.close()?,
        guest_gap_ms: beside.largest_gap_ms()?,
        bytes,
    })
}

/// Copies `source` to `destination`, one thread on either side of each of `streams` connections,
/// and says how long the copying took, connecting aside.
fn copy(
    source: &Mapping,
    destination: &Mapping,
    streams: u8,
    link: &Link,
) -> Result<Duration, BenchError> {
    let mut connections = Vec::new();
    for range in shares(source.len().min(destination.len()), streams) {
        connections.push((range, connect(link)?));
    }
    let began = Instant::now();
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for (range, (near, far)) in connections {
            let part = range.clone();
            workers.push(("send", scope.spawn(move || send(&near, source, part))));
            workers.push((
                "receive",
                scope.spawn(move || receive(&far, destination, range)),
            ));
        }
        let mut result = Ok(());
        for (what, worker) in workers {
            let ended = worker
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread died")));
            result = result.and(ended.map_err(|e| BenchError::Copy(what, e)));
        }
        interrupt::check()?;
        result
    })?;
    Ok(began.elapsed())
}

/// Cuts `bytes` into up to `streams` ranges of whole pages, as equal as that allows.
fn shares(bytes: usize, streams: u8) -> Vec<Range<usize>> {
    let each = bytes
        .div_ceil(usize::from(streams.max(1)))
        .next_multiple_of(PAGE);
    (0..bytes)
        .step_by(each.max(PAGE))
        .map(|start| start..bytes.min(start + each))
        .collect()
}

fn connect(link: &Link) -> Result<(TcpStream, TcpStream), BenchError> {
    let failed = |e| BenchError::Copy("connect", e);
    let here = (link.destination_address(), 0);
    let listener = link.at_destination(|| TcpListener::bind(here).map_err(failed))?;
    let there = listener.local_addr().map_err(failed)?;
    let near = link.at_source(|| connect_to(there).map_err(failed))?;
    let (far, peer) = listener.accept().map_err(failed)?;
    if near.local_addr().map_err(failed)? != peer {
        return Err(failed(io::Error::other("another process connected first")));
    }
    for end in [&near, &far] {
        end.set_nodelay(true).map_err(failed)?;
    }
    Ok((near, far))
}

fn connect_to(there: SocketAddr) -> io::Result<TcpStream> {
    // The engine's: the limit is what such a connection can carry.
    let socket = tcp_socket(there)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    rustix::net::connect(&socket, &there)?;
    Ok(socket.into())
}

fn send(mut socket: &TcpStream, from: &Mapping, range: Range<usize>) -> io::Result<()> {
    let sent = in_chunks(from, range, |chunk| socket.write_volatile(chunk));
    if sent.is_err() {
        // The receiver waits for bytes that will never come.
        let _ = socket.shutdown(Shutdown::Both);
    }
    sent
}

fn receive(mut socket: &TcpStream, into: &Mapping, range: Range<usize>) -> io::Result<()> {
    let received = in_chunks(into, range, |chunk| socket.read_volatile(chunk));
    if received.is_err() {
        let _ = socket.shutdown(Shutdown::Both);
    }
    received
}

fn in_chunks(
    memory: &Mapping,
    mut range: Range<usize>,
    mut transfer: impl FnMut(&mut VolatileSlice<'_>) -> Result<usize, VolatileMemoryError>,
) -> io::Result<()> {
    while !range.is_empty() {
        if interrupt::requested() {
            return Err(ErrorKind::Interrupted.into());
        }
        let length = CHUNK.min(range.len());
        let mut chunk = memory
            .slice(range.start, length)
            .map_err(io::Error::other)?;
        match transfer(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => range.start += bytes,
            Err(VolatileMemoryError::IOError(e)) if e.kind() == ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(e)) => return Err(e),
            Err(e) => return Err(io::Error::other(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::super::mapping::Pages;
    use super::*;

    #[test]
    fn everything_is_copied_over_any_number_of_streams() {
        let bytes = 9 * PAGE;
        let source = Mapping::new(bytes as u64, Pages::Populated).unwrap();
        source.fill_random().unwrap();
        for streams in [1, 2, 3, 16] {
            let destination = Mapping::new(bytes as u64, Pages::Cold).unwrap();
            copy(&source, &destination, streams, &Link::loopback()).unwrap();
            let contents = |mapping: &Mapping| {
                let mut copy = vec![0; bytes];
                mapping
                    .slice(0, bytes)
                    .unwrap()
                    .read_slice(&mut copy, 0)
                    .unwrap();
                copy
            };
            assert!(
                contents(&source) == contents(&destination),
                "{streams} streams"
            );
        }
    }

    #[test]
    fn shares_cover_all_pages_once() {
        assert_eq!(shares(4 * PAGE, 2), [0..2 * PAGE, 2 * PAGE..4 * PAGE]);
        assert_eq!(shares(5 * PAGE, 2), [0..3 * PAGE, 3 * PAGE..5 * PAGE]);
        assert_eq!(shares(PAGE, 4), vec![0..PAGE; 1]);
        assert!(shares(0, 4).is_empty());
        for streams in 1..=16 {
            let mut end = 0;
            for share in shares(1 << 30, streams) {
                assert_eq!((share.start, share.start % PAGE), (end, 0));
                end = share.end;
            }
            assert_eq!(end, 1 << 30, "{streams} streams");
        }
    }

    #[test]
    fn a_lost_peer_ends_the_copy() {
        let mapping = Mapping::new(64 << 20, Pages::Cold).unwrap();
        let all = 0..mapping.len();
        let (near, far) = connect(&Link::loopback()).unwrap();
        drop(far);
        assert!(send(&near, &mapping, all.clone()).is_err());
        let (near, far) = connect(&Link::loopback()).unwrap();
        drop(near);
        assert_eq!(
            receive(&far, &mapping, all).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
    }
}
