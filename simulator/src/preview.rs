//! The address of a voice's preview.

use serde::{Serialize, Serializer};

const FOLDER: &str = "https://storage.example.com/previews/";
const LONG: usize = 3_000;

/// The content of a voice's `preview_url`. The text is the id of the voice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Preview<'a> {
    None,
    Plain(&'a str),
    /// Signed addresses can be long: this one has 3,000 characters.
    Long(&'a str),
    /// JSON can write a NUL that PostgreSQL's `text` cannot hold.
    Nul(&'a str),
    /// A number instead of text.
    Wrong,
}

impl Serialize for Preview<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            Self::Plain(id) => serializer.collect_str(&format_args!("{FOLDER}{id}.mp3")),
            Self::Long(id) => {
                let start = format!("{FOLDER}{id}.mp3?signature=");
                serializer.collect_str(&format_args!("{start:x<LONG$}"))
            }
            Self::Nul(id) => serializer.collect_str(&format_args!("{FOLDER}{id}\0.mp3")),
            Self::Wrong => serializer.serialize_u32(42),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    fn json(preview: Preview<'_>) -> String {
        serde_json::to_string(&preview).unwrap()
    }

    #[test]
    fn each_kind_of_preview_serialises_as_expected() {
        assert_eq!(json(Preview::None), "null");
        assert_eq!(
            json(Preview::Plain("anna")),
            r#""https://storage.example.com/previews/anna.mp3""#
        );
        assert_eq!(json(Preview::Long("anna")).len(), LONG + 2);
        assert!(json(Preview::Nul("anna")).contains(r"anna\u0000.mp3"));
        assert_eq!(json(Preview::Wrong), "42");
    }
}
