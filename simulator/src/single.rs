//! The endpoints for a single voice.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{Multipart, Path, State};
use serde::{Deserialize, Serialize};

use crate::account::Speech;
use crate::answer::Answer;
use crate::server::Shared;

/// `GET /v1/voices/{voice_id}`.
pub(crate) async fn look_up(
    State(shared): State<Arc<Shared>>,
    Path(voice_id): Path<String>,
) -> Answer {
    match shared.account().single(&voice_id) {
        Some(voice) => Answer::of(200, &voice),
        None => Answer::voice_not_found(&voice_id),
    }
}

/// The body of a request for speech; other fields are ignored.
#[derive(Deserialize)]
struct Words {
    text: String,
    #[serde(default)]
    model_id: String,
}

/// `POST /v1/text-to-speech/{voice_id}`: returns some bytes instead of audio.
pub(crate) async fn speak(
    State(shared): State<Arc<Shared>>,
    Path(voice_id): Path<String>,
    body: Bytes,
) -> Answer {
    let Ok(Words { text, model_id }) = serde_json::from_slice(&body) else {
        return Answer::invalid("body", "text", "missing", "Field required");
    };
    let mut account = shared.account_mut();
    if account.single(&voice_id).is_none() {
        return Answer::voice_not_found(&voice_id);
    }
    let mut audio = Answer::empty(200).with_header("content-type", "audio/mpeg");
    audio.body = vec![0xff; 1000 * text.len()];
    account.speak(Speech {
        voice_id,
        text,
        model_id,
    });
    audio
}

#[derive(Serialize)]
struct Done {
    status: &'static str,
}

/// `DELETE /v1/voices/{voice_id}`.
pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(voice_id): Path<String>,
) -> Answer {
    let mut account = shared.account_mut();
    if account.single(&voice_id).is_none() {
        return Answer::voice_not_found(&voice_id);
    }
    account.remove(&voice_id);
    Answer::of(200, &Done { status: "ok" })
}

#[derive(Serialize)]
struct Created {
    voice_id: String,
    requires_verification: bool,
}

/// `POST /v1/voices/add`.
pub(crate) async fn add(State(shared): State<Arc<Shared>>, form: Multipart) -> Answer {
    match read(form).await {
        Ok((Some(name), files)) if files > 0 => {
            let voice_id = shared.account_mut().create(&name);
            let created = Created {
                voice_id,
                requires_verification: false,
            };
            Answer::of(200, &created)
        }
        Ok((None, _)) => Answer::invalid("body", "name", "missing", "Field required"),
        Ok(_) => Answer::invalid("body", "files", "missing", "Field required"),
        Err(error) => Answer::unknown(400, &error.body_text()),
    }
}

/// Returns the name in a form and the number of its files. The files are read and discarded.
async fn read(mut form: Multipart) -> Result<(Option<String>, usize), MultipartError> {
    let mut name = None;
    let mut files = 0;
    while let Some(mut field) = form.next_field().await? {
        match field.name() {
            Some("name") => name = Some(field.text().await?),
            Some("files" | "files[]") => {
                files += 1;
                while field.chunk().await?.is_some() {}
            }
            _ => {}
        }
    }
    Ok((name, files))
}
