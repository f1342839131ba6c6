//! The requests that the simulator received.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::RequestPartsExt;
use axum::extract::{Query, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};

/// A request that the simulator received, for checks and for scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The time of arrival, counted from the simulator's start.
    pub at: Duration,
    /// The HTTP method, in upper case.
    pub method: String,
    /// The path as it was sent, without the query.
    pub path: String,
    /// The requested voices, decoded: all of them for the list, one for the single lookup and the deletion.
    pub voice_ids: Vec<String>,
    /// The status of the answer. `None` while the request waits, and forever if the client disconnected.
    pub status: Option<u16>,
    /// The header `user-agent`.
    pub user_agent: Option<String>,
    /// Whether it had a non-empty `xi-api-key`, valid or not.
    pub has_key: bool,
}

impl Request {
    pub(crate) async fn read(parts: &mut Parts, at: Duration) -> Self {
        let mut voice_ids = Vec::new();
        if let Ok(Query(arguments)) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            voice_ids.extend(
                arguments
                    .into_iter()
                    .filter(|(name, _)| name == "voice_ids")
                    .map(|(_, id)| id),
            );
        }
        if let Ok(path) = parts.extract::<RawPathParams>().await {
            voice_ids.extend(path.iter().map(|(_, id)| id.to_owned()));
        }
        Self {
            at,
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            voice_ids,
            status: None,
            user_agent: text(&parts.headers, header::USER_AGENT.as_str()).map(str::to_owned),
            has_key: key(&parts.headers).is_some(),
        }
    }

    fn kind(&self) -> Kind {
        let single = self.path.strip_prefix("/v1/voices/").unwrap_or_default();
        match self.method.as_str() {
            method if method == Method::GET && self.path == "/v2/voices" => Kind::List,
            method if method == Method::POST && single == "add" => Kind::Add,
            method if method == Method::GET && !single.is_empty() => Kind::Single,
            method if method == Method::DELETE && !single.is_empty() => Kind::Delete,
            method if method == Method::POST && self.path.starts_with(SPEECH) => Kind::Speech,
            _ => Kind::Other,
        }
    }
}

const SPEECH: &str = "/v1/text-to-speech/";

/// The key of a request, unless it is empty.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    text(headers, "xi-api-key").filter(|key| !key.is_empty())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    List,
    Single,
    Add,
    Delete,
    Speech,
    Other,
}

/// The number of requests, whatever their answers were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `GET /v2/voices`.
    pub list: u64,
    /// `GET /v1/voices/{voice_id}`.
    pub single: u64,
    /// `POST /v1/voices/add`.
    pub add: u64,
    /// `DELETE /v1/voices/{voice_id}`.
    pub delete: u64,
    /// `POST /v1/text-to-speech/{voice_id}`.
    pub speech: u64,
    /// All other requests, including the old list `GET /v1/voices`.
    pub other: u64,
}

/// The requests received so far.
#[derive(Debug)]
pub(crate) struct Log {
    keeps_requests: bool,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    counts: Counts,
    requests: Vec<Request>,
    /// How often the log was emptied. The answer to a request from before that is not recorded.
    volume: u64,
}

/// The position of a request in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    volume: u64,
    number: usize,
}

impl Log {
    pub(crate) fn new(keeps_requests: bool) -> Self {
        Self {
            keeps_requests,
            pages: Mutex::default(),
        }
    }

    /// Records a request on arrival, so that requests whose client disconnects are recorded too.
    pub(crate) fn enter(&self, request: &Request) -> Option<Line> {
        let mut pages = self.pages();
        let counts = &mut pages.counts;
        let count = match request.kind() {
            Kind::List => &mut counts.list,
            Kind::Single => &mut counts.single,
            Kind::Add => &mut counts.add,
            Kind::Delete => &mut counts.delete,
            Kind::Speech => &mut counts.speech,
            Kind::Other => &mut counts.other,
        };
        *count += 1;
        self.keeps_requests.then(|| {
            pages.requests.push(request.clone());
            Line {
                volume: pages.volume,
                number: pages.requests.len() - 1,
            }
        })
    }

    pub(crate) fn answered(&self, line: Line, status: u16) {
        let mut pages = self.pages();
        if pages.volume == line.volume
            && let Some(request) = pages.requests.get_mut(line.number)
        {
            request.status = Some(status);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.pages().counts
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.pages().requests.clone()
    }

    pub(crate) fn forget(&self) {
        let mut pages = self.pages();
        *pages = Pages {
            volume: pages.volume + 1,
            ..Pages::default()
        };
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
