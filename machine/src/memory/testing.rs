//! What tests of memory ask the kernel.

/// Bytes of the mapping at `address` that huge pages map.
pub fn huge_bytes_at(address: usize) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap();
        if let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (
                usize::from_str_radix(start, 16),
                usize::from_str_radix(end, 16),
            )
        {
            inside = (start..end).contains(&address);
        } else if let Some(amount) = line.strip_prefix("ShmemPmdMapped:")
            && inside
        {
            return amount
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap()
                << 10;
        }
    }
    panic!("no mapping at {address:#x}");
}
