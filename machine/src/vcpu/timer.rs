//! The local APIC's timer across a move: what is left of it when the guest goes on.
//!
//! A timer by TSC deadline needs nothing: its moment is one of the guest's TSC, which goes on by the time
//! that passed. The others count bus cycles, and KVM goes on from the count that is loaded as if no time
//! had passed; so the time is taken off here. A timer that fell due meanwhile fires at once.

/// Registers of the local APIC (Intel SDM volume 3, 13.4.1), offsets into its page.
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
/// Mode in bits 17 and 18 of the timer's entry.
const MODE_TSC_DEADLINE: u32 = 2;

/// Length of a bus cycle, in nanoseconds: KVM's, unless it was told another.
const BUS_CYCLE_NS: u64 = 1;

fn register(lapic: &[u8], at: usize) -> Option<u32> {
    let bytes = lapic.get(at..at + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Takes `ns` nanoseconds off what is left of the timer in a saved local APIC.
pub(super) fn move_on(lapic: &mut [u8], ns: u64) {
    let read = |at| register(lapic, at);
    let (Some(entry), Some(initial), Some(current), Some(divide)) = (
        read(LVT_TIMER),
        read(INITIAL_COUNT),
        read(CURRENT_COUNT),
        read(DIVIDE),
    ) else {
        return;
    };
    // Zero is a timer that was stopped, or one that fired. Whether the guest has had its interrupt by then is
    // not told, so KVM is let fire it again: a guest bears one too many, and not one too few.
    if entry >> 17 & 3 == MODE_TSC_DEADLINE || initial == 0 || current == 0 {
        return;
    }
    let shift = ((divide & 3 | divide >> 1 & 4) + 1) & 7;
    let passed = (ns / BUS_CYCLE_NS) >> shift;
    let left = u64::from(current).saturating_sub(passed).max(1) as u32;
    lapic[CURRENT_COUNT..CURRENT_COUNT + 4].copy_from_slice(&left.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(mode: u32, initial: u32, current: u32, divide: u32, ns: u64) -> u32 {
        let mut lapic = vec![0_u8; 1024];
        for (at, value) in [
            (LVT_TIMER, mode << 17 | 0xec),
            (INITIAL_COUNT, initial),
            (CURRENT_COUNT, current),
            (DIVIDE, divide),
        ] {
            lapic[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        move_on(&mut lapic, ns);
        register(&lapic, CURRENT_COUNT).unwrap()
    }

    #[test]
    fn what_is_left_of_a_timer_is_less_by_the_time_that_passed() {
        const BY_1: u32 = 0xb;
        const BY_2: u32 = 0;
        const BY_16: u32 = 3;
        const BY_128: u32 = 0xa;
        for mode in [0, 1] {
            assert_eq!(left(mode, 9000, 5000, BY_1, 2000), 3000);
            assert_eq!(left(mode, 9000, 5000, BY_2, 2000), 4000);
            assert_eq!(left(mode, 9000, 5000, BY_16, 32_000), 3000);
            assert_eq!(left(mode, 9000, 5000, BY_128, 128_000), 4000);
            // Due meanwhile: at once, which is not never.
            assert_eq!(left(mode, 9000, 5000, BY_1, 5000), 1);
            assert_eq!(left(mode, 9000, 5000, BY_1, u64::MAX), 1);
            assert_eq!(left(mode, 0, 0, BY_1, 5), 0);
            assert_eq!(left(mode, 9000, 0, BY_1, 5), 0);
        }
        assert_eq!(left(MODE_TSC_DEADLINE, 9000, 5000, BY_1, 2000), 5000);
    }

    #[test]
    fn a_lapic_of_another_length_is_left_alone() {
        for length in [0, 0x321, 0x3e3] {
            move_on(&mut vec![1; length], 5);
        }
    }
}
