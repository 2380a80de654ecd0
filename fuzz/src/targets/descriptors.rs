//! Requests to virtio devices, written as inputs: descriptors, and what makes a queue look at them.

/// The bytes of a descriptor as the targets of virtio devices read them.
pub(super) fn describe(queue: u8, index: u8, gpa: u16, len: u8, flags: u8) -> Vec<u8> {
    let mut bytes = vec![4, queue, index];
    bytes.extend((gpa / 4).to_le_bytes());
    bytes.extend([len, flags, index + 1]);
    bytes
}

/// Descriptors, request and notification of a queue, once for each of `queues`.
pub(super) fn plain_seeds(queues: u8) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for queue in 0..queues {
        // Odd queues are for output; a fifth one takes commands.
        let flags = if queue % 2 == 1 { 0 } else { 2 };
        let mut seed = vec![0, 0, 0, 0, 0];
        seed.extend([10, 4, b'a', b'b', b'c', b'd']);
        let first = if queue == 4 { 0 } else { flags };
        seed.extend(describe(queue, 0, 0x8000, 64, 1 | first));
        seed.extend(describe(queue, 1, 0x9000, 130, flags));
        seed.extend([6, queue, 0, 7, queue, 9, 6, queue, 0, 7, queue]);
        seeds.push(seed);
    }
    seeds
}
