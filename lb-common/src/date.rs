//! Dates of cookies (RFC 6265 §5.1.1), as seconds since 1970.

/// A year that is written with two digits, of the present or the last century; others as they are.
#[inline(always)]
pub const fn year(year: u32) -> u32 {
    match year {
        70..=99 => year + 1900,
        0..=69 => year + 2000,
        _ => year,
    }
}

/// Seconds since 1970, UTC; 0 for what lies before that. `year`: all digits of it; `month`: from 0; `day`: from 1; `time`: seconds
/// since midnight. What no calendar has, a 31st of June, is some day near it.
#[inline(always)]
pub const fn seconds(year: u32, month: u32, day: u32, time: u32) -> u64 {
    // From March on, the days of a month do not depend on the year (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let before_march = (month < 2) as u64;
    let year = (year as u64).saturating_sub(before_march);
    let days_of_year = (153 * ((month as u64 + 10) % 12) + 2) / 5 + day as u64;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + days_of_year;
    // Up to the first of January 1970.
    const EPOCH: u64 = 719_469;
    if days < EPOCH { 0 } else { (days - EPOCH) * 86_400 + time as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds() {
        for (expected, date) in [
            (0, (1970, 0, 1, 0)),
            (1, (1970, 0, 1, 1)),
            (86_400, (1970, 0, 2, 0)),
            (951_782_400, (2000, 1, 29, 0)),
            (951_868_800, (2000, 2, 1, 0)),
            (1_709_164_800, (2024, 1, 29, 0)),
            (1_735_689_599, (2024, 11, 31, 86_399)),
            (1_735_689_600, (2025, 0, 1, 0)),
            (4_102_444_800, (2100, 0, 1, 0)),
            (0, (1969, 11, 31, 86_399)),
            (0, (0, 0, 0, 0)),
        ] {
            assert_eq!(seconds(date.0, date.1, date.2, date.3), expected, "{date:?}");
        }
        assert_eq!([year(70), year(99), year(0), year(69), year(1999)], [1970, 1999, 2000, 2069, 1999]);
    }
}
