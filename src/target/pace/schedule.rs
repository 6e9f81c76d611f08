//! Which rate holds at which time of the day. Pure.
//!
//! Owns: rates and windows as an operator writes them, which of them holds, what can never work.
//! Does not own: what time it is (`clock`), keeping to a rate (`bucket`).
//!
//! ```toml
//! bandwidth = "20 MiB/s"
//! bandwidth = { always = "20 MiB/s", "08:00-18:00" = "5 MiB/s", "22:00-06:00" = "unlimited", "12:00-13:00" = "off" }
//! ```

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use bytesize::ByteSize;

/// The lowest rate: below it a chunk of 64 MiB would take over an hour, and each attempt begins anew.
const RATE_MIN: u64 = 16 << 10;
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// How fast bodies may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rate {
    /// As fast as it goes.
    #[default]
    Unlimited,
    /// Bytes per second.
    PerSecond(NonZeroU64),
    /// Nothing is sent.
    Closed,
}

/// What is wrong with a rate or a window, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

impl Rate {
    /// A limit in bytes per second; `None` below 16 KiB/s.
    pub fn per_second(bytes: u64) -> Option<Rate> {
        NonZeroU64::new(bytes).filter(|bytes| bytes.get() >= RATE_MIN).map(Rate::PerSecond)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Unlimited => f.write_str("unlimited"),
            Rate::PerSecond(rate) => write!(f, "{}/s", ByteSize(rate.get()).display().iec()),
            Rate::Closed => f.write_str("off"),
        }
    }
}

impl FromStr for Rate {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Rate, ScheduleError> {
        let text = text.trim();
        match text {
            "unlimited" => return Ok(Rate::Unlimited),
            "off" => return Ok(Rate::Closed),
            _ => {}
        }
        let size = text.strip_suffix("/s").unwrap_or(text);
        let Ok(size) = size.trim().parse::<ByteSize>() else {
            return Err(ScheduleError(format!("{text:?} is no rate: write \"5 MiB/s\", \"unlimited\" or \"off\"")));
        };
        Rate::per_second(size.as_u64())
            .ok_or_else(|| ScheduleError(format!("{text:?} is less than 16 KiB/s: write \"off\" to send nothing")))
    }
}

/// A span of each day, in minutes after midnight; may pass midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    from: u16,
    to: u16,
    rate: Rate,
}

impl Window {
    fn holds(&self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// The rates of a day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    always: Rate,
    windows: Vec<Window>,
}

impl Schedule {
    /// The same rate all day.
    pub fn always(rate: Rate) -> Schedule {
        Schedule { always: rate, windows: Vec::new() }
    }

    /// Adds a window `"08:00-18:00"` in local time in which `rate` holds instead.
    ///
    /// # Errors
    ///
    /// It is no window, it is empty, or it overlaps another.
    pub fn window(&mut self, text: &str, rate: Rate) -> Result<(), ScheduleError> {
        let wrong = || ScheduleError(format!("{text:?} is no time of the day: write \"08:00-18:00\""));
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minute(from).ok_or_else(wrong)? % DAY, minute(to).ok_or_else(wrong)? % DAY);
        if from == to {
            return Err(ScheduleError(format!("the window {text:?} never opens")));
        }
        let window = Window { from, to, rate };
        if (0..DAY).any(|minute| window.holds(minute) && self.windows.iter().any(|other| other.holds(minute))) {
            return Err(ScheduleError(format!("the window {text:?} overlaps another")));
        }
        self.windows.push(window);
        Ok(())
    }

    /// The rate that holds in this minute of the day (0 … 1,439).
    pub fn rate_at(&self, minute: u16) -> Rate {
        self.windows.iter().find(|window| window.holds(minute)).map_or(self.always, |window| window.rate)
    }

    /// Refuses a schedule that would send nothing, ever.
    pub fn checked(self) -> Result<Schedule, ScheduleError> {
        if (0..DAY).all(|minute| self.rate_at(minute) == Rate::Closed) {
            return Err(ScheduleError("nothing would ever be sent: some time of the day must not be \"off\"".into()));
        }
        Ok(self)
    }
}

/// `"08:30"` in minutes after midnight; `"24:00"` is the end of the day.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let digits = |text: &str| (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(());
    digits(hours)?;
    digits(minutes)?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn windows_hold_at_their_time_and_may_pass_midnight() {
        let mut schedule = Schedule::always(rate("20 MiB/s"));
        schedule.window("08:00-18:00", rate("5 MiB/s")).unwrap();
        schedule.window("22:00-06:30", rate("unlimited")).unwrap();
        let at = |hour: u16, minute: u16| schedule.rate_at(hour * 60 + minute).to_string();
        assert_eq!(at(7, 59), "20.0 MiB/s");
        assert_eq!(at(8, 0), "5.0 MiB/s");
        assert_eq!(at(17, 59), "5.0 MiB/s");
        assert_eq!(at(18, 0), "20.0 MiB/s");
        assert_eq!(at(23, 59), "unlimited");
        assert_eq!(at(6, 29), "unlimited");
        assert_eq!(at(6, 30), "20.0 MiB/s");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for text in ["fast", "-1 MiB/s", "", "5 apples/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
        assert!("1 KiB/s".parse::<Rate>().unwrap_err().to_string().contains("16 KiB/s"));
        let mut schedule = Schedule::default();
        for text in ["8:00-18:00", "08:00", "08:00-25:00", "08:60-09:00", "24:01-25:00", "+8:00-09:00"] {
            assert!(schedule.window(text, Rate::Closed).is_err(), "{text:?}");
        }
        assert!(schedule.window("09:00-09:00", Rate::Closed).unwrap_err().to_string().contains("never opens"));
        assert!(schedule.window("00:00-24:00", Rate::Closed).unwrap_err().to_string().contains("never opens"));
        schedule.window("08:00-24:00", Rate::Closed).unwrap();
        assert!(schedule.window("23:00-01:00", Rate::Closed).unwrap_err().to_string().contains("overlaps"));
        assert!(schedule.clone().checked().is_ok());
        schedule.window("00:00-08:00", Rate::Closed).unwrap();
        assert!(schedule.checked().unwrap_err().to_string().contains("nothing would ever be sent"));
        assert!(Schedule::always(Rate::Closed).checked().is_err());
    }
}
