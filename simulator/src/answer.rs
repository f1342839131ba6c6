//! Answers of scripts, and the error bodies of the API.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Value, json};

use crate::options::ErrorFormat;

/// A complete HTTP answer, for [`Simulator::script`](crate::Simulator::script).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status, from 100 to 999.
    pub status: u16,
    /// The headers. A name may occur several times.
    pub headers: Vec<(String, String)>,
    /// The bytes of the body. The headers need not match them.
    pub body: Vec<u8>,
    /// How long the client waits for this answer.
    pub delay: Duration,
    /// How the body is sent.
    pub delivery: Delivery,
}

/// How the body of an answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// All at once.
    #[default]
    Whole,
    /// Byte by byte, with this pause after each byte.
    Slowly(Duration),
    /// The connection is closed after the body, before the answer is complete.
    BrokenOff,
}

impl Answer {
    /// An answer without headers and body, as some proxies send it.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// An answer with the content type of JSON. The body may be invalid JSON.
    #[must_use]
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let mut answer = Self::empty(status).with_header("content-type", "application/json");
        answer.body = body.into();
        answer
    }

    /// An error page of a proxy in front of the API.
    #[must_use]
    pub fn html(status: u16, title: &str) -> Self {
        let mut answer = Self::empty(status).with_header("content-type", "text/html");
        answer.body = format!(
            "<html>\r\n<head><title>{status} {title}</title></head>\r\n\
             <body><center><h1>{status} {title}</h1></center></body>\r\n</html>\r\n"
        )
        .into_bytes();
        answer
    }

    /// An error in the API's own format: `{"detail": {"status": …, "message": …}}`.
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::detail(
            status,
            &Told {
                status: code,
                message,
            },
        )
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the delay.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets how the body is sent.
    #[must_use]
    pub fn sent(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    pub(crate) fn invalid_api_key() -> Self {
        Self::error(401, "invalid_api_key", "Invalid API key")
    }

    pub(crate) fn voice_not_found(voice_id: &str) -> Self {
        let message = format!("A voice with the voice_id {voice_id} was not found.");
        Self::error(400, "voice_not_found", &message)
    }

    /// FastAPI's answer to an unknown path or method.
    pub(crate) fn unknown(status: u16, text: &str) -> Self {
        Self::detail(status, &text)
    }

    /// FastAPI's answer to an invalid argument.
    pub(crate) fn invalid(place: &str, argument: &str, kind: &str, message: &str) -> Self {
        let unfit = Unfit {
            loc: [place, argument],
            msg: message,
            r#type: kind,
        };
        Self::detail(422, &[unfit])
    }

    fn detail<T: Serialize>(status: u16, detail: &T) -> Self {
        Self::of(status, &Detail { detail })
    }

    pub(crate) fn of<T: Serialize>(status: u16, body: &T) -> Self {
        Self::written(status, Vec::new(), body)
    }

    /// Writes the body into a buffer that is already large enough.
    pub(crate) fn written<T: Serialize>(status: u16, mut buffer: Vec<u8>, body: &T) -> Self {
        match serde_json::to_writer(&mut buffer, body) {
            Ok(()) => Self::json(status, buffer),
            Err(error) => Self::json(500, error.to_string()),
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response
            .body(body(self.body, self.delivery))
            .unwrap_or_else(|error| {
                // Not an answer that the API could send, so that the author of the script notices the error.
                let text = format!("the script's answer is no HTTP: {error}");
                let plain = [(header::CONTENT_TYPE, "text/plain")];
                (StatusCode::INTERNAL_SERVER_ERROR, plain, text).into_response()
            })
    }
}

/// Converts the body of an API error to another format. Other bodies are returned unchanged.
pub(crate) fn reformatted(body: &[u8], status: u16, format: ErrorFormat) -> Option<Vec<u8>> {
    let legacy: Value = match format {
        ErrorFormat::Legacy => return None,
        ErrorFormat::Current | ErrorFormat::Both => serde_json::from_slice(body).ok()?,
    };
    let name = legacy["detail"]["status"].as_str()?;
    let code = match name {
        "too_many_concurrent_requests" => "concurrent_limit_exceeded",
        other => other,
    };
    let kind = match status {
        401 => "authentication_error",
        403 => "authorization_error",
        429 => "rate_limit_error",
        500.. => "internal_error",
        _ if name == "voice_not_found" => "not_found",
        _ => "invalid_request",
    };
    let status = match format {
        ErrorFormat::Legacy | ErrorFormat::Current => Value::Null,
        ErrorFormat::Both => name.into(),
    };
    let detail = json!({"type": kind, "code": code, "message": legacy["detail"]["message"],
                        "request_id": "0123456789abcdef0123456789abcdef", "param": null, "status": status});
    serde_json::to_vec(&json!({"detail": detail})).ok()
}

fn body(bytes: Vec<u8>, delivery: Delivery) -> Body {
    match delivery {
        Delivery::Whole => Body::from(bytes),
        Delivery::Slowly(pause) => Body::from_stream(stream::unfold(
            bytes.into_iter(),
            move |mut bytes| async move {
                let byte = bytes.next()?;
                tokio::time::sleep(pause).await;
                Some((Ok::<_, io::Error>(vec![byte]), bytes))
            },
        )),
        Delivery::BrokenOff => {
            let end = io::Error::from(io::ErrorKind::ConnectionAborted);
            Body::from_stream(stream::iter([Ok(bytes), Err(end)]))
        }
    }
}

#[derive(Serialize)]
struct Detail<'a, T> {
    detail: &'a T,
}

#[derive(Serialize)]
struct Told<'a> {
    status: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Unfit<'a> {
    loc: [&'a str; 2],
    msg: &'a str,
    r#type: &'a str,
}
