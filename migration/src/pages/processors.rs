//! How the threads that move memory share the host's processors with the vCPUs and with each other.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Makes the calling thread one that moves memory: it steps back behind the vCPUs of its host, which
/// share its cores and whose guest is not to notice.
pub(crate) fn step_back() {
    /// Enough for a vCPU that wakes to run at once, and not so much that the move starves beside it.
    const NICER: i32 = 1;
    // Refused only where a limit forbids even that; then all are equal.
    let _ = rustix::process::nice(NICER);
}

/// Whether this process may use no more processors than a move has streams.
pub(crate) fn are_few(streams: u8) -> bool {
    sched_getaffinity(None).is_ok_and(|allowed| few(&allowed, streams))
}

fn few(allowed: &CpuSet, streams: u8) -> bool {
    allowed.count() <= streams.into()
}

/// Keeps the calling thread, that of data stream `stream` of `streams`, to its share of the processors,
/// where those are few.
///
/// A thread that waits for its peer is woken by it, often on the very processor of whoever woke it: within
/// one host, and where packets arrive on one processor, all streams end up on one, and the others are left
/// to the guest. Where there are processors to spare, the scheduler finds an idle one.
pub(crate) fn spread(stream: u16, streams: u8) {
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    if let Some(processor) = share_of(stream, streams, &allowed) {
        let mut one = CpuSet::new();
        one.set(processor);
        // Refused when the processor is taken from this process meanwhile; then it stays as it is.
        let _ = sched_setaffinity(None, &one);
    }
}

/// The processor of `allowed` for `stream`, or none in particular.
fn share_of(stream: u16, streams: u8, allowed: &CpuSet) -> Option<usize> {
    if !few(allowed, streams) {
        return None;
    }
    let count = (allowed.count() as usize).max(1);
    (0..CpuSet::MAX_CPU)
        .filter(|&processor| allowed.is_set(processor))
        .nth(usize::from(stream) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(processors: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        for &processor in processors {
            set.set(processor);
        }
        set
    }

    #[test]
    fn streams_share_the_processors_evenly_where_those_are_few() {
        let allowed = set(&[3, 7, 900]);
        let shares: Vec<_> = (0..6).map(|k| share_of(k, 6, &allowed)).collect();
        assert_eq!(shares, [3, 7, 900, 3, 7, 900].map(Some));
        assert_eq!(share_of(2, 3, &allowed), Some(900));
    }

    #[test]
    fn streams_are_left_alone_where_there_are_processors_to_spare() {
        assert_eq!(share_of(0, 2, &set(&[0, 1, 2])), None);
        assert_eq!(share_of(0, 2, &set(&[])), None);
    }

    #[test]
    fn a_spread_thread_keeps_to_its_processor() {
        std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            if allowed.count() > u32::from(u8::MAX) {
                return;
            }
            spread(0, u8::MAX);
            let kept = sched_getaffinity(None).unwrap();
            assert_eq!(kept.count(), 1);
            let first = (0..CpuSet::MAX_CPU).find(|&p| allowed.is_set(p)).unwrap();
            assert!(kept.is_set(first));
        })
        .join()
        .unwrap();
    }
}
