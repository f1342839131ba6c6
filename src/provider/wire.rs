//! Parses the provider's JSON: only the few fields that decide, without building a tree.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::core::voice::Voice;

/// One page of `GET /v2/voices` (`GetVoicesV2ResponseModel`).
#[derive(Debug, Default, PartialEq)]
pub struct ListPage {
    /// The voices on it that could be read. A voice that cannot be read counts as not returned.
    pub voices: Vec<Voice>,
    /// Where the next page begins, if the provider says that there is one.
    pub next_page_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Page<T> {
    #[serde(deserialize_with = "the_first")]
    voices: Vec<T>,
    #[serde(default)]
    has_more: Option<bool>,
    #[serde(default)]
    next_page_token: Option<String>,
}

/// The maximum number of voices that are read from a page: those that were requested, a hundred at most, and some
/// premade ones. Further voices (a page may have half a million) count as not returned.
const MOST_VOICES: usize = 1000;

fn the_first<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct TheFirst<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for TheFirst<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("voices")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
            let mut voices = Vec::new();
            while voices.len() < MOST_VOICES {
                match sequence.next_element()? {
                    Some(voice) => voices.push(voice),
                    None => return Ok(voices),
                }
            }
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
            Ok(voices)
        }
    }

    deserializer.deserialize_seq(TheFirst(PhantomData))
}

/// Reads a page of the list. If one voice in it is malformed, the others are still read.
pub fn list_page(body: &[u8]) -> Result<ListPage, serde_json::Error> {
    let page = serde_json::from_slice::<Page<Voice>>(body).or_else(|_| {
        let Page {
            voices,
            has_more,
            next_page_token,
        } = serde_json::from_slice::<Page<&RawValue>>(body)?;
        let voices = voices
            .into_iter()
            .filter_map(|voice| serde_json::from_str(voice.get()).ok())
            .collect();
        Ok::<_, serde_json::Error>(Page {
            voices,
            has_more,
            next_page_token,
        })
    })?;
    Ok(ListPage {
        voices: page.voices,
        next_page_token: page
            .next_page_token
            .filter(|token| page.has_more == Some(true) && !token.is_empty()),
    })
}

/// Reads the answer of `GET /v1/voices/{voice_id}` (`VoiceResponseModel`).
pub fn voice(body: &[u8]) -> Result<Voice, serde_json::Error> {
    serde_json::from_slice(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_voices_in_a_page_are_skipped() {
        let page = list_page(
            br#"{"voices":[{"voice_id":"a"},{"voice_id":"b","preview_url":7},{"voice_id":"c","preview_url":"x"},3],
                 "has_more":true,"next_page_token":"t","total_count":"many"}"#,
        )
        .expect("reads");
        let ids: Vec<_> = page.voices.iter().map(|v| v.voice_id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(page.next_page_token.as_deref(), Some("t"));
    }

    #[test]
    fn page_is_cut_at_the_maximum_number_of_voices() {
        let voices = r#"{"voice_id":"a"},"#.repeat(2 * MOST_VOICES);
        let body = format!(r#"{{"voices":[{voices}7],"has_more":true,"next_page_token":"t"}}"#);
        let page = list_page(body.as_bytes()).expect("reads");
        assert_eq!(page.voices.len(), MOST_VOICES);
        assert_eq!(page.next_page_token.as_deref(), Some("t"));
    }

    #[test]
    fn page_token_is_ignored_without_has_more() {
        let token = |tail: &str| {
            list_page(format!(r#"{{"voices":[]{tail}}}"#).as_bytes())
                .expect("reads")
                .next_page_token
        };
        assert_eq!(token(r#","has_more":false,"next_page_token":"t""#), None);
        assert_eq!(token(r#","has_more":true,"next_page_token":null"#), None);
        assert_eq!(token(r#","has_more":true,"next_page_token":"""#), None);
        assert_eq!(token(""), None);
    }

    #[test]
    fn rejects_bodies_that_are_not_a_page_or_a_voice() {
        for body in [
            "",
            "<html>",
            "{}",
            "[]",
            "null",
            r#"{"voices":null}"#,
            r#"{"voices":[{"voice_id":"a"}"#,
        ] {
            assert!(list_page(body.as_bytes()).is_err(), "{body}");
        }
        for body in ["", "null", "{}", r#"{"voice_id":7}"#, r#"{"detail":{}}"#] {
            assert!(voice(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = list_page(&bytes);
            let _ = voice(&bytes);
        }
    }
}
