//! The clock's registers, and how they show the time (Motorola MC146818A data sheet).

use super::calendar::DateTime;

pub(super) const SECONDS: u8 = 0x00;
pub(super) const SECONDS_ALARM: u8 = 0x01;
pub(super) const MINUTES: u8 = 0x02;
pub(super) const MINUTES_ALARM: u8 = 0x03;
pub(super) const HOURS: u8 = 0x04;
pub(super) const HOURS_ALARM: u8 = 0x05;
pub(super) const WEEKDAY: u8 = 0x06;
pub(super) const DAY: u8 = 0x07;
pub(super) const MONTH: u8 = 0x08;
pub(super) const YEAR: u8 = 0x09;
pub(super) const A: u8 = 0x0a;
pub(super) const B: u8 = 0x0b;
pub(super) const C: u8 = 0x0c;
pub(super) const D: u8 = 0x0d;
/// Where the FADT says that the century is.
pub(super) const CENTURY: u8 = 0x32;

/// Register A: the time is about to change.
pub(super) const A_UPDATING: u8 = 0x80;
/// Register A after power-on: 32768 Hz time base, periodic rate 1024 Hz.
pub(super) const A_DEFAULT: u8 = 0x26;
/// Register B: the clock stands still while its time is set.
pub(super) const B_SET: u8 = 0x80;
/// Register B: hours run to 24.
const B_24_HOURS: u8 = 0x02;
/// Register B: numbers are binary, not BCD.
const B_BINARY: u8 = 0x04;
/// Register B after power-on: BCD, 24 hours.
pub(super) const B_DEFAULT: u8 = B_24_HOURS;
/// Register C: the interrupt line is active.
pub(super) const C_INTERRUPT: u8 = 0x80;
/// Register C (flag) and B (enable): periodic interrupt.
pub(super) const PERIODIC: u8 = 0x40;
/// Register C (flag) and B (enable): alarm.
pub(super) const ALARM: u8 = 0x20;
/// Register C (flag) and B (enable): the time has changed.
pub(super) const UPDATE: u8 = 0x10;
/// Register D: the battery is good.
pub(super) const D_VALID: u8 = 0x80;

/// Hour register: afternoon, in 12-hour mode.
const PM: u8 = 0x80;
/// Alarm registers from here up match anything.
const ANY: u8 = 0xc0;

/// Number of registers.
pub(super) const COUNT: usize = 128;
/// The registers' memory.
pub(super) type Registers = [u8; COUNT];

/// Whether a register shows the time.
pub(super) fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY)
}

fn encode(b: u8, value: u8) -> u8 {
    if b & B_BINARY != 0 {
        value
    } else {
        ((value / 10) << 4) | (value % 10)
    }
}

fn decode(b: u8, value: u8) -> u8 {
    if b & B_BINARY != 0 {
        value
    } else {
        (value >> 4) * 10 + (value & 0xf)
    }
}

fn encode_hour(b: u8, hour: u8) -> u8 {
    if b & B_24_HOURS != 0 {
        return encode(b, hour);
    }
    let half = encode(
        b,
        match hour % 12 {
            0 => 12,
            hour => hour,
        },
    );
    if hour >= 12 { half | PM } else { half }
}

fn decode_hour(b: u8, value: u8) -> u8 {
    if b & B_24_HOURS != 0 {
        return decode(b, value);
    }
    let half = decode(b, value & !PM) % 12;
    if value & PM != 0 { half + 12 } else { half }
}

/// Shows `date` in the time registers, in the format that register B asks for.
pub(super) fn show(registers: &mut Registers, date: DateTime) {
    let b = registers[usize::from(B)];
    let mut put = |index: u8, value: u8| registers[usize::from(index)] = value;
    put(SECONDS, encode(b, date.second));
    put(MINUTES, encode(b, date.minute));
    put(HOURS, encode_hour(b, date.hour));
    put(WEEKDAY, encode(b, date.weekday()));
    put(DAY, encode(b, date.day));
    put(MONTH, encode(b, date.month));
    // Both below 100: years end at 9999.
    put(YEAR, encode(b, (date.year % 100) as u8));
    put(CENTURY, encode(b, (date.year / 100) as u8));
}

/// The date in the time registers; `None` when they show none, as they may while they are being set.
pub(super) fn shown(registers: &Registers) -> Option<i64> {
    let b = registers[usize::from(B)];
    let get = |index: u8| decode(b, registers[usize::from(index)]);
    DateTime {
        year: u16::from(get(CENTURY)) * 100 + u16::from(get(YEAR)),
        month: get(MONTH),
        day: get(DAY),
        hour: decode_hour(b, registers[usize::from(HOURS)]),
        minute: get(MINUTES),
        second: get(SECONDS),
    }
    .to_unix()
}

/// Whether the alarm is due in the second `date`.
pub(super) fn alarm_matches(registers: &Registers, date: DateTime) -> bool {
    let b = registers[usize::from(B)];
    let matches = |index: u8, now: u8| {
        let alarm = registers[usize::from(index)];
        alarm >= ANY || alarm == now
    };
    matches(SECONDS_ALARM, encode(b, date.second))
        && matches(MINUTES_ALARM, encode(b, date.minute))
        && matches(HOURS_ALARM, encode_hour(b, date.hour))
}

/// Period of the periodic interrupt in nanoseconds; `None` when it is off.
pub(super) fn period(registers: &Registers) -> Option<u64> {
    // With a 32768 Hz time base rates 1 and 2 stand for those of 8 and 9.
    let rate = match registers[usize::from(A)] & 0xf {
        0 => return None,
        rate @ 1..=2 => rate + 7,
        rate => rate,
    };
    Some(1_000_000_000 * (1 << (rate - 1)) / 32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shown_and_read_back_in_every_format() {
        for b in [0, B_24_HOURS, B_BINARY, B_24_HOURS | B_BINARY] {
            for hour in 0..24 {
                let mut registers = [0; COUNT];
                registers[usize::from(B)] = b;
                let date = DateTime {
                    year: 2026,
                    month: 11,
                    day: 30,
                    hour,
                    minute: 59,
                    second: 8,
                };
                show(&mut registers, date);
                assert_eq!(shown(&registers), date.to_unix(), "{b:#x} {hour}");
            }
        }
    }

    #[test]
    fn default_format_is_bcd_and_24_hours() {
        let mut registers = [0; COUNT];
        registers[usize::from(B)] = B_DEFAULT;
        let date = DateTime {
            year: 2026,
            month: 11,
            day: 30,
            hour: 23,
            minute: 59,
            second: 8,
        };
        show(&mut registers, date);
        let at = |index: u8| registers[usize::from(index)];
        assert_eq!(
            (at(CENTURY), at(YEAR), at(MONTH), at(DAY)),
            (0x20, 0x26, 0x11, 0x30)
        );
        assert_eq!(
            (at(HOURS), at(MINUTES), at(SECONDS), at(WEEKDAY)),
            (0x23, 0x59, 0x08, 2)
        );
    }

    #[test]
    fn garbage_in_the_time_registers_is_no_date() {
        assert_eq!(shown(&[0xff; COUNT]), None);
        assert_eq!(shown(&[0; COUNT]), None);
    }
}
