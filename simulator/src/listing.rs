//! `GET /v2/voices` and the older `GET /v1/voices`.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::Uri;
use serde::Serialize;

use crate::answer::Answer;
use crate::server::Shared;
use crate::voice::Voice;

/// The maximum number of ids in one request.
const MAX_IDS: usize = 100;

/// Buffer space for one voice of an answer, so that the buffer is not reallocated while it grows.
const VOICE_BYTES: usize = 2_560;

/// The arguments of a list request. Unknown arguments are ignored.
struct Question {
    voice_ids: Vec<String>,
    page_size: usize,
    start: Option<u64>,
    include_total_count: bool,
}

impl Question {
    fn read(uri: &Uri) -> Result<Self, Answer> {
        let mut question = Self {
            voice_ids: Vec::new(),
            page_size: 10,
            start: None,
            include_total_count: true,
        };
        let Query(arguments) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| unfit("", "value_error", &error.to_string()))?;
        for (name, value) in arguments {
            match name.as_str() {
                "voice_ids" => question.voice_ids.push(value),
                "page_size" => question.page_size = page_size(&value)?,
                "next_page_token" if value.is_empty() => {}
                "next_page_token" => {
                    let invalid = |_| unfit(&name, "value_error", "Invalid next page token");
                    question.start = Some(value.parse().map_err(invalid)?);
                }
                "include_total_count" => {
                    question.include_total_count = match value.to_ascii_lowercase().as_str() {
                        "true" | "1" | "yes" | "on" => true,
                        "false" | "0" | "no" | "off" => false,
                        _ => {
                            let message =
                                "Input should be a valid boolean, unable to interpret input";
                            return Err(unfit(&name, "bool_parsing", message));
                        }
                    }
                }
                _ => {}
            }
        }
        if question.voice_ids.len() > MAX_IDS {
            let message = format!(
                "List should have at most {MAX_IDS} items after validation, not {}",
                question.voice_ids.len()
            );
            return Err(unfit("voice_ids", "too_long", &message));
        }
        Ok(question)
    }
}

fn page_size(value: &str) -> Result<usize, Answer> {
    let invalid = |kind, message| unfit("page_size", kind, message);
    match value.parse::<i64>() {
        Ok(size @ 1..=100) => Ok(usize::from(size.unsigned_abs() as u8)),
        Ok(..1) => Err(invalid(
            "greater_than_equal",
            "Input should be greater than or equal to 1",
        )),
        Ok(_) => Err(invalid(
            "less_than_equal",
            "Input should be less than or equal to 100",
        )),
        Err(_) => Err(invalid(
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        )),
    }
}

fn unfit(argument: &str, kind: &str, message: &str) -> Answer {
    Answer::invalid("query", argument, kind, message)
}

/// `GetVoicesV2ResponseModel` of the OpenAPI description.
#[derive(Serialize)]
struct Listed<'a> {
    voices: Vec<Voice<'a>>,
    has_more: bool,
    total_count: usize,
    next_page_token: Option<String>,
}

/// The list with filters and pages.
pub(crate) async fn list(State(shared): State<Arc<Shared>>, uri: Uri) -> Answer {
    if !shared.list_enabled {
        return Answer::unknown(404, "Not Found");
    }
    let question = match Question::read(&uri) {
        Ok(question) => question,
        Err(refusal) => return refusal,
    };
    let account = shared.account();
    let ids = &question.voice_ids;
    let start = question.start.unwrap_or(0);
    let mut page = if ids.is_empty() {
        account.all(start, question.page_size)
    } else {
        account.chosen(ids, start, question.page_size)
    };
    let total_count = if !question.include_total_count {
        0
    } else if ids.is_empty() {
        account.total()
    } else if start == 0 && page.next.is_none() {
        page.voices.len()
    } else {
        account.chosen(ids, 0, MAX_IDS).voices.len()
    };
    if question.start.is_none() {
        let unasked = account
            .premade()
            .filter(|voice| !ids.iter().any(|id| id == voice.id));
        page.voices.splice(0..0, unasked);
    }
    let buffer = Vec::with_capacity(page.voices.len() * VOICE_BYTES);
    let listed = Listed {
        has_more: page.next.is_some(),
        total_count,
        next_page_token: page.next.map(|start| start.to_string()),
        voices: page.voices,
    };
    Answer::written(200, buffer, &listed)
}

#[derive(Serialize)]
struct Everything<'a> {
    voices: Vec<Voice<'a>>,
}

/// The old list without pages: all voices at once.
pub(crate) async fn everything(State(shared): State<Arc<Shared>>) -> Answer {
    let account = shared.account();
    let mut voices: Vec<_> = account.premade().collect();
    voices.extend(account.all(0, usize::MAX).voices);
    Answer::of(200, &Everything { voices })
}
