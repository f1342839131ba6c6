//! Formats spans, times and untrusted texts for people. Pure.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// Makes one line of untrusted text. Names and messages may contain line breaks and terminal codes, which could forge
/// lines.
pub fn in_line(text: &str) -> String {
    text.replace(breaks_lines, " ")
}

/// Whether a character ends a line, controls a terminal, or changes the direction of the text after it.
pub fn breaks_lines(c: char) -> bool {
    let is_direction = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A span in its two largest units: `45 s`, `3 min 20 s`, `2 d 4 h`.
pub fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let seconds = span.as_secs();
    if seconds < 10 {
        return match span.as_millis() {
            millis @ 0..1000 => format!("{millis} ms"),
            millis => format!("{:.1} s", millis as f64 / 1000.0),
        };
    }
    let largest = UNITS
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[largest];
    let smaller = UNITS
        .get(largest + 1)
        .map(|(small, name)| (seconds % unit / small, name));
    match smaller.filter(|(number, _)| *number > 0) {
        Some((number, small)) => format!("{} {name} {number} {small}", seconds / unit),
        None => format!("{} {name}", seconds / unit),
    }
}

/// A time in UTC, to the second.
pub fn moment(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long something was before `now`, or will be after it.
pub fn ago(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let before = (now - time).to_std();
    match before {
        Ok(before) => format!("{} ago", span(before)),
        Err(_) => format!("in {}", span((time - now).to_std().unwrap_or_default())),
    }
}

/// A number with its noun.
pub fn number_of(number: u64, one: &str, more: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {more}"),
    }
}

/// A URL for output. The query is left out: that of a signed URL gives access to what it names.
pub fn without_query(url: &str) -> String {
    match url.split_once('?') {
        Some((place, _)) => format!("{place}?…"),
        None => url.to_owned(),
    }
}

pub fn url_without_query<S: Serializer>(
    url: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    url.as_deref().map(without_query).serialize(serializer)
}

/// Untrusted text, made safe for a log line.
pub fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_CHARS)
        .collect()
}

/// A time for programs: RFC 3339, in UTC, with milliseconds.
pub fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_a_duration_in_at_most_two_units() {
        for (millis, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_500, "1.5 s"),
            (9_999, "10.0 s"),
            (10_000, "10 s"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (200_000, "3 min 20 s"),
            (3_600_000, "1 h"),
            (3_661_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
            (8_640_000_000, "100 d"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), words);
        }
        let _no_panic = span(Duration::MAX);
    }

    #[test]
    fn formats_times_in_the_past_and_in_the_future() {
        let now = DateTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(ago(DateTime::UNIX_EPOCH, now), "1 min 40 s ago");
        assert_eq!(ago(now, DateTime::UNIX_EPOCH), "in 1 min 40 s");
        assert_eq!(moment(now), "1970-01-01 00:01:40");
    }
}
