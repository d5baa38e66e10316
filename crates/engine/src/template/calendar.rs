//! Dates for templates that ask for today's.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since 1970 on the clock that is to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(i64);

impl Moment {
    /// A time in UTC, or the present one here.
    pub fn of(time: Option<SystemTime>) -> Self {
        let seconds = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX / 2),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX / 2),
        };
        match time {
            Some(time) => Self(seconds(time)),
            None => {
                let now = seconds(SystemTime::now());
                Self(now + offset_from_utc(now))
            }
        }
    }

    /// As Python's `strftime`.
    pub fn format(self, format: &str) -> Result<String, Error> {
        let days = self.0.div_euclid(86_400);
        let second_of_day = self.0.rem_euclid(86_400);
        let (hour, minute, second) = (
            second_of_day / 3600,
            second_of_day / 60 % 60,
            second_of_day % 60,
        );
        let (year, month, day) = civil(days);
        let weekday = (days + 4).rem_euclid(7);
        let name = |names: &[&'static str], i: i64| {
            usize::try_from(i)
                .ok()
                .and_then(|i| names.get(i).copied())
                .unwrap_or_default()
        };
        let short = |name: &'static str| name.get(..3).unwrap_or(name).to_owned();
        let hour_of_12 = (hour + 11) % 12 + 1;

        let mut out = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                out.push(letter);
                continue;
            }
            let mut directive = letters.next();
            let unpadded = directive == Some('-');
            if unpadded {
                directive = letters.next();
            }
            let digits = |value: i64, width: usize| {
                if unpadded {
                    value.to_string()
                } else {
                    format!("{value:0width$}")
                }
            };
            let text = match directive {
                Some('Y') => year.to_string(),
                Some('y') => digits(year.rem_euclid(100), 2),
                Some('m') => digits(month, 2),
                Some('d') => digits(day, 2),
                Some('e') => format!("{day:2}"),
                Some('H') => digits(hour, 2),
                Some('I') => digits(hour_of_12, 2),
                Some('M') => digits(minute, 2),
                Some('S') => digits(second, 2),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                Some('B') => name(&MONTHS, month - 1).to_owned(),
                Some('b' | 'h') => short(name(&MONTHS, month - 1)),
                Some('A') => name(&DAYS, weekday).to_owned(),
                Some('a') => short(name(&DAYS, weekday)),
                Some('j') => digits(days - days_before(year) + 1, 3),
                Some('w') => weekday.to_string(),
                Some('F') => format!("{year}-{month:02}-{day:02}"),
                Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
                Some('%') => "%".to_owned(),
                other => {
                    let what = other.map_or_else(String::new, String::from);
                    let text = format!("strftime_now: %{what} is not supported");
                    return Err(Error::new(ErrorKind::InvalidOperation, text));
                }
            };
            out.push_str(&text);
        }
        Ok(out)
    }
}

/// Days from 1970 to the first day of a year of the Gregorian calendar.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    // A first guess, off by one at most.
    let mut year = 1970 + days.div_euclid(366);
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let mut day = days - days_before(year);
    let mut month = 1;
    for length in [
        31,
        28 + i64::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(unix)]
fn offset_from_utc(now: i64) -> i64 {
    let now: libc::time_t = now;
    // SAFETY: all fields of tm are integers or a pointer, for which zeros are valid values.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that live through the call.
    let filled = unsafe { libc::localtime_r(&now, &mut local) };
    if filled.is_null() { 0 } else { local.tm_gmtoff }
}

#[cfg(not(unix))]
fn offset_from_utc(_now: i64) -> i64 {
    0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        Moment::of(Some(UNIX_EPOCH + Duration::from_secs(seconds)))
            .format(format)
            .unwrap()
    }

    #[test]
    fn dates_are_those_of_python() {
        assert_eq!(
            at(1_721_997_296, "%d %b %Y, %A %H:%M:%S %j"),
            "26 Jul 2024, Friday 12:34:56 208"
        );
        assert_eq!(at(951_782_400, "%F %-I%p %e"), "2000-02-29 12AM 29");
        assert_eq!(
            at(4_107_542_399, "%B %-d, %Y %T"),
            "February 28, 2100 23:59:59"
        );
        assert_eq!(at(0, "%a %y-%m"), "Thu 70-01");
        assert!(Moment(0).format("%Q").is_err());
    }
}
