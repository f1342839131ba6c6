//! The time zone of columns without one.

/// The time zone of columns without one, by its name in PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NaiveZone(String);

impl NaiveZone {
    /// Reads a name. The database says whether it knows the name.
    pub fn parse(text: &str) -> Result<Self, InvalidZone> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '+' | '-');
        // PostgreSQL also accepts offsets, and POSIX counts them westwards.
        let is_offset = text.contains(['+', '-']) && text.contains(|c: char| c.is_ascii_digit());
        let is_name =
            text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_part);
        match is_name && (!is_offset || text.starts_with("Etc/GMT")) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidZone),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_utc(&self) -> bool {
        is_utc(&self.0)
    }

    /// Whether it is the time zone of this name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name) || self.is_utc() && is_utc(name)
    }
}

impl Default for NaiveZone {
    /// UTC.
    fn default() -> Self {
        Self("UTC".to_owned())
    }
}

/// Whether the name of a time zone means UTC.
fn is_utc(zone: &str) -> bool {
    [
        "UTC",
        "Etc/UTC",
        "GMT",
        "Etc/GMT",
        "Zulu",
        "UCT",
        "Universal",
    ]
    .iter()
    .any(|name| name.eq_ignore_ascii_case(zone))
}

/// The text cannot be the name of a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the name of a time zone; an example is America/Los_Angeles")]
pub struct InvalidZone;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_time_zone_names_but_not_offsets() {
        for zone in [
            "UTC",
            "Asia/Tokyo",
            "America/Port-au-Prince",
            "Etc/GMT+9",
            "EST5EDT",
        ] {
            assert!(NaiveZone::parse(zone).is_ok(), "{zone}");
        }
        for text in [
            "",
            "+09:00",
            "-8",
            "UTC+9",
            "JST-9",
            "9",
            "Asia/Tokyo'",
            "a b",
        ] {
            assert_eq!(NaiveZone::parse(text), Err(InvalidZone), "{text}");
        }
        assert!(NaiveZone::default().is_utc());
    }
}
