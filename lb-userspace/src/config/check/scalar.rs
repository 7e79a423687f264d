//! Single values: numbers, durations, sizes and paths, with their defaults.

use super::Checker;
use crate::config::raw::Size;
use crate::config::values::{parse_duration, parse_size, show_duration};
use serde_spanned::Spanned;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

impl Checker<'_, '_> {
    pub(super) fn path(&self, raw: Option<Spanned<String>>, default: PathBuf) -> PathBuf {
        raw.map_or(default, |path| self.base.join(path.into_inner()))
    }

    pub(super) fn number<T>(
        &mut self,
        raw: Option<Spanned<u64>>,
        key: &str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let Some(raw) = raw else { return default };
        match T::try_from(*raw.get_ref()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let reason = format!("`{key}` is {}", raw.get_ref());
                let help = format!(
                    "it must be from {} to {}; without it, it is {default}",
                    range.start(),
                    range.end()
                );
                self.faults.push(raw.span(), reason, help);
                default
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        raw: &Option<Spanned<String>>,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(raw) = raw else { return default };
        let (reason, help) = match parse_duration(raw.get_ref()) {
            Some(duration) if range.contains(&duration) => return duration,
            Some(duration) => {
                let (start, end) = (show_duration(*range.start()), show_duration(*range.end()));
                let help =
                    format!("it must be from {start} to {end}; without it, it is {}", show_duration(default));
                (format!("`{key}` is {}", show_duration(duration)), help)
            }
            None => (
                format!("`{key}` \"{}\" is not a duration", raw.get_ref()),
                "write whole numbers with the units ms, s, m, h or d, such as 10s or 1h30m".to_owned(),
            ),
        };
        self.faults.push(raw.span(), reason, help);
        default
    }

    pub(super) fn size(
        &mut self,
        raw: Option<Spanned<Size>>,
        key: &str,
        range: RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        let Some(raw) = raw else { return default };
        let bytes = match raw.get_ref() {
            Size::Bytes(bytes) => Some(*bytes),
            Size::Text(text) => parse_size(text),
        };
        let (reason, help) = match (bytes, raw.get_ref()) {
            (Some(bytes), _) if range.contains(&bytes) => {
                return usize::try_from(bytes).unwrap_or(usize::MAX);
            }
            (Some(bytes), _) => (
                format!("`{key}` is {bytes} bytes"),
                format!("it must be from {} to {} bytes", range.start(), range.end()),
            ),
            (None, Size::Text(text)) => (
                format!("`{key}` \"{text}\" is not a size"),
                "write a number of bytes, or one with KiB, MiB or GiB".to_owned(),
            ),
            (None, Size::Bytes(_)) => return default,
        };
        self.faults.push(raw.span(), reason, help);
        default
    }
}
