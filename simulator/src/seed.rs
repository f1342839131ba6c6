//! Seed files: the voices that a simulator starts with.

use std::fmt;

use serde::Deserialize;

use crate::plan::{FateError, Plan};

/// One voice of a seed file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    voice_id: String,
    name: String,
    fate: Option<String>,
}

/// A voice to add: its id, its name, and its plan if the file contains one.
pub(crate) type Seed = (String, String, Option<Plan>);

/// Reads a whole seed file before anything is added, so that an invalid file adds nothing.
pub(crate) fn read(json: &str) -> Result<Vec<Seed>, SeedError> {
    serde_json::from_str::<Vec<Entry>>(json)
        .map_err(SeedError::Json)?
        .into_iter()
        .map(|entry| match entry.fate.as_deref().map(str::parse) {
            None => Ok((entry.voice_id, entry.name, None)),
            Some(Ok(plan)) => Ok((entry.voice_id, entry.name, Some(plan))),
            Some(Err(source)) => Err(SeedError::Fate {
                voice_id: entry.voice_id,
                source,
            }),
        })
        .collect()
}

/// Why a seed file was rejected. Nothing of it was added.
#[derive(Debug)]
pub enum SeedError {
    /// The file is not a JSON list of `{"voice_id", "name", "fate"}`.
    Json(serde_json::Error),
    /// The `fate` of a voice is invalid.
    Fate {
        /// The id of the voice.
        voice_id: String,
        /// The error in the fate.
        source: FateError,
    },
}

impl fmt::Display for SeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(_) => f.write_str("the seed file is not a JSON list of voices"),
            Self::Fate { voice_id, .. } => write!(f, "the fate of voice {voice_id:?}"),
        }
    }
}

impl std::error::Error for SeedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Json(source) => Some(source),
            Self::Fate { source, .. } => Some(source),
        }
    }
}
