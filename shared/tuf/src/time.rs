//! Points in time as TUF writes them: `2030-01-01T00:00:00Z`, whole seconds, UTC, years 1970 to 9999.
//!
//! Not a calendar library and not a clock. Invariant: a [`UnixTime`] can always be printed, and what it prints parses
//! back to the same value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 9999-12-31T23:59:59Z, the last second that the four-digit format can write.
const LAST_SECOND: i64 = 253_402_300_799;

/// A point in time: whole seconds since 1970-01-01T00:00:00Z, at most the end of the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct UnixTime {
    seconds: i64,
}

impl UnixTime {
    /// Makes a time from seconds since 1970; times outside 1970–9999 become the nearest one inside.
    pub fn from_seconds(seconds: i64) -> Self {
        Self {
            seconds: seconds.clamp(0, LAST_SECOND),
        }
    }

    /// Makes a time from milliseconds since 1970, dropping the fraction; clamps like [`UnixTime::from_seconds`].
    pub fn from_millis(millis: i64) -> Self {
        Self::from_seconds(millis.div_euclid(1000))
    }

    /// Returns the seconds since 1970-01-01T00:00:00Z.
    pub fn as_seconds(self) -> i64 {
        self.seconds
    }

    /// Returns the milliseconds since 1970-01-01T00:00:00Z.
    pub fn as_millis(self) -> i64 {
        self.seconds * 1000
    }

    /// Returns the time `days` days later, clamped to the end of the year 9999.
    pub fn plus_days(self, days: u32) -> Self {
        Self::from_seconds(self.seconds + i64::from(days) * 86_400)
    }
}

/// Text that is not `YYYY-MM-DDTHH:MM:SSZ` or names a date that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time is not a valid YYYY-MM-DDTHH:MM:SSZ from 1970 on")]
pub struct ParseTimeError;

impl FromStr for UnixTime {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let bytes: &[u8; 20] = text.as_bytes().try_into().map_err(|_| ParseTimeError)?;
        for (position, separator) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'Z')] {
            if bytes[position] != separator {
                return Err(ParseTimeError);
            }
        }
        let year = number(&bytes[0..4])?;
        let month = number(&bytes[5..7])?;
        let day = number(&bytes[8..10])?;
        let (hour, minute, second) = (
            number(&bytes[11..13])?,
            number(&bytes[14..16])?,
            number(&bytes[17..19])?,
        );
        // A leap second (60) is refused: no metadata needs it, and it has no Unix time of its own.
        if year < 1970
            || !(1..=12).contains(&month)
            || !(1..=days_in_month(year, month)).contains(&day)
            || hour > 23
            || minute > 59
            || second > 59
        {
            return Err(ParseTimeError);
        }
        let seconds = days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        Ok(Self { seconds })
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, in_day) = (self.seconds / 86_400, self.seconds % 86_400);
        let mut year = 1970 + days / 366;
        while days_from_epoch(year + 1, 1, 1) <= days {
            year += 1;
        }
        days -= days_from_epoch(year, 1, 1);
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
        write!(
            f,
            "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            days + 1
        )
    }
}

impl From<UnixTime> for String {
    fn from(time: UnixTime) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for UnixTime {
    type Error = ParseTimeError;

    fn try_from(text: String) -> Result<Self, ParseTimeError> {
        text.parse()
    }
}

fn number(digits: &[u8]) -> Result<i64, ParseTimeError> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Ok(value * 10 + i64::from(digit - b'0')),
        _ => Err(ParseTimeError),
    })
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the given date, for years from 1970 on.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let leap_days_before = |year: i64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let whole_years = (year - 1970) * 365 + leap_days_before(year) - leap_days_before(1970);
    let whole_months: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
    whole_years + whole_months + day - 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_instants_parse_and_print() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2030-01-01T00:00:00Z", 1_893_456_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", LAST_SECOND),
        ] {
            assert_eq!(text.parse::<UnixTime>().unwrap().as_seconds(), seconds, "{text}");
            assert_eq!(UnixTime::from_seconds(seconds).to_string(), text);
        }
    }

    #[test]
    fn other_formats_and_impossible_dates_are_refused() {
        for text in [
            "",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01t00:00:00z",
            "2030-01-01T00:00:00.0Z",
            "2030-13-01T00:00:00Z",
            "2030-00-01T00:00:00Z",
            "2030-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2030-04-31T00:00:00Z",
            "2030-01-00T00:00:00Z",
            "2030-01-01T24:00:00Z",
            "2030-01-01T00:60:00Z",
            "2030-01-01T00:00:60Z",
            "1969-12-31T23:59:59Z",
            "+030-01-01T00:00:00Z",
            "２０30-01-01T00:00Z",
        ] {
            assert_eq!(text.parse::<UnixTime>(), Err(ParseTimeError), "{text}");
        }
    }

    #[test]
    fn clocks_outside_the_format_are_clamped() {
        assert_eq!(UnixTime::from_millis(-1), UnixTime::from_seconds(0));
        assert_eq!(UnixTime::from_seconds(i64::MAX).as_seconds(), LAST_SECOND);
        assert_eq!(
            UnixTime::from_seconds(i64::MAX).plus_days(u32::MAX).as_seconds(),
            LAST_SECOND
        );
    }

    proptest! {
        #[test]
        fn every_second_round_trips(seconds in 0..=LAST_SECOND) {
            let time = UnixTime::from_seconds(seconds);
            prop_assert_eq!(time.to_string().parse::<UnixTime>(), Ok(time));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,24}") {
            let _ = text.parse::<UnixTime>();
        }
    }
}
