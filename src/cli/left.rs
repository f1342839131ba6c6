//! The ids that a command left as they are, each with the reason.

use serde_json::{Value, json};

use crate::core::format::in_line;
use crate::store::VoiceRecord;

pub(super) type Left = (String, &'static str);

/// The ids that no row has.
pub(super) fn unknown<'a>(
    ids: &'a [String],
    voices: &'a [VoiceRecord],
) -> impl Iterator<Item = Left> + 'a {
    const UNKNOWN: &str = "no row has this as its id or provider id";
    let is_unknown = |id: &&String| !voices.iter().any(|voice| voice.is_named(id));
    let unknown = ids.iter().filter(is_unknown);
    unknown.map(|id| (id.clone(), UNKNOWN))
}

pub(super) fn as_json(left: &[Left]) -> Vec<Value> {
    let left = left.iter();
    left.map(|(id, why)| json!({"id": id, "reason": why}))
        .collect()
}

/// The result of a command, and a line for each id.
pub(super) fn with_left(done: String, left: &[Left]) -> String {
    let left = left
        .iter()
        .map(|(id, why)| format!("\n  {} is unchanged: {why}", in_line(id)));
    done + &left.collect::<String>()
}
