//! Dates of the proleptic Gregorian calendar, in UTC.

/// A moment as a clock shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    /// Year with century.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const DAY: i64 = 86_400;
/// Years that fit the clock's registers.
const FIRST_YEAR: u16 = 1970;
const LAST_YEAR: u16 = 9999;

const fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_in_year(year: u16) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

/// Days in a month, 1 to 12.
const fn days_in_month(year: u16, month: u8) -> u8 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first day of `year`, which is 1970 or later.
fn days_before(year: u16) -> i64 {
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let past = i64::from(year) - 1;
    (past - 1969) * 365 + leaps(past) - leaps(1969)
}

impl DateTime {
    /// The moment `seconds` after 1970-01-01; moments that the clock cannot show become the nearest.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let end = days_before(LAST_YEAR) * DAY + days_in_year(LAST_YEAR) * DAY - 1;
        let seconds = seconds.clamp(0, end);
        let mut days = seconds / DAY;
        let in_day = seconds % DAY;
        // A little early, then forward: an average year is 365.2425 days.
        let guess = (days * 10_000 / 3_652_425 - 1).max(0);
        let mut year = FIRST_YEAR + u16::try_from(guess).unwrap_or(0);
        days -= days_before(year);
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while days >= i64::from(days_in_month(year, month)) {
            days -= i64::from(days_in_month(year, month));
            month += 1;
        }
        // All in range by construction.
        Self {
            year,
            month,
            day: days as u8 + 1,
            hour: (in_day / 3600) as u8,
            minute: (in_day / 60 % 60) as u8,
            second: (in_day % 60) as u8,
        }
    }

    /// Seconds from 1970-01-01, when there is such a moment.
    pub(super) fn to_unix(self) -> Option<i64> {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        let valid = (FIRST_YEAR..=LAST_YEAR).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !valid {
            return None;
        }
        let before: i64 = (1..month)
            .map(|month| i64::from(days_in_month(year, month)))
            .sum();
        let days = days_before(year) + before + i64::from(day) - 1;
        Some(days * DAY + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
    }

    /// Day of the week, 1 (Sunday) to 7.
    pub(super) fn weekday(self) -> u8 {
        let days = self.to_unix().unwrap_or(0) / DAY;
        // 1970-01-01 was a Thursday.
        ((days + 4) % 7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_shown_as_dates_and_back() {
        let table = [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_399, (2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (1_709_164_800, (2024, 2, 29, 0, 0, 0), 5),
            (4_107_542_399, (2100, 2, 28, 23, 59, 59), 1),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
            (253_402_300_799, (9999, 12, 31, 23, 59, 59), 6),
        ];
        for (seconds, (year, month, day, hour, minute, second), weekday) in table {
            let date = DateTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
            };
            assert_eq!(DateTime::from_unix(seconds), date);
            assert_eq!(date.to_unix(), Some(seconds));
            assert_eq!(date.weekday(), weekday, "{date:?}");
        }
    }

    #[test]
    fn impossible_dates_are_refused() {
        let date = DateTime {
            year: 2023,
            month: 2,
            day: 29,
            hour: 0,
            minute: 0,
            second: 0,
        };
        assert_eq!(date.to_unix(), None);
        assert_eq!(DateTime { day: 0, ..date }.to_unix(), None);
        assert_eq!(
            DateTime {
                month: 13,
                day: 1,
                ..date
            }
            .to_unix(),
            None
        );
    }

    proptest::proptest! {
        #[test]
        fn every_second_survives_the_round_trip(seconds in 0i64..253_402_300_800) {
            proptest::prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), Some(seconds));
        }

        #[test]
        fn any_number_of_seconds_shows_a_valid_date(seconds: i64) {
            proptest::prop_assert!(DateTime::from_unix(seconds).to_unix().is_some());
        }
    }
}
