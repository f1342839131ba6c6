//! What a refusal by the provider means, by what the caller does about it.

use std::time::Duration;

use serde::Deserialize;

/// A request that did not bring what was asked for. None of these is a verdict about a voice except
/// [`Refusal::NotFound`], and that one has to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400 or 404 with `voice_not_found`: confirm it, then fail the voice.
    #[error("voice_not_found")]
    NotFound,
    /// 404 or 405 without that code: this base URL has no such endpoint. Go another way.
    #[error("no such endpoint (HTTP {0})")]
    NoSuchEndpoint(u16),
    /// 401, or 403 because of the key's permissions: stop, the key is of no use.
    #[error("HTTP {0} {1}")]
    Unauthorized(u16, String),
    /// 402 or 403: the plan does not include this, or this voice is somebody else's.
    #[error("HTTP {0} {1}")]
    Forbidden(u16, String),
    /// Our request is wrong for the provider: ask for less at once, then set the voice aside.
    #[error("HTTP {0} {1}")]
    Rejected(u16, String),
    /// 429: wait, at least as long as told.
    #[error("throttled: {code}")]
    Throttled {
        /// `too_many_concurrent_requests` or `system_busy`.
        code: String,
        /// What the provider asks for.
        told: Option<Duration>,
    },
    /// The provider answers other requests, and not this one: the reason may lie in one of its voices.
    /// Isolate that voice.
    #[error("{0}")]
    Unanswerable(Trouble),
    /// Anything else: ask again later.
    #[error("{0}")]
    Unavailable(Trouble),
}

/// No answer, or none that could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Trouble {
    /// Which kind, for counting: one log line a kind.
    pub kind: TroubleKind,
    /// What exactly, without secrets.
    pub detail: String,
    /// What the provider asks for, where it answered at all.
    pub told: Option<Duration>,
}

/// Kinds of trouble between here and the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TroubleKind {
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// An answer that broke off.
    Broken,
    /// 500: it may be this request that the provider fails on.
    Internal,
    /// A status that says "later", or that nobody expects.
    Status,
    /// An answer that is not what the API describes.
    Unreadable,
    /// An answer over the size limit.
    TooLarge,
    /// 429, still after the retries.
    Throttled,
    /// Not asked: the lease, the pass or the provider's patience was at its end.
    NotAsked,
}

impl std::fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Internal => "internal",
            Self::Status => "status",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Throttled => "throttled",
            Self::NotAsked => "not_asked",
        })
    }
}

impl TroubleKind {
    /// Whether it may come of what the request asked for, rather than of the provider as a whole.
    pub fn may_lie_in_a_voice(self) -> bool {
        match self {
            Self::Timeout
            | Self::Broken
            | Self::Internal
            | Self::Status
            | Self::Unreadable
            | Self::TooLarge => true,
            Self::Connect | Self::Throttled | Self::NotAsked => false,
        }
    }
}

impl Trouble {
    /// Trouble about which the provider said nothing.
    pub fn new(kind: TroubleKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            told: None,
        }
    }
}

/// The error body of ElevenLabs: `{"detail": {"status": "<code>", "message": "<text>"}}`.
#[derive(Deserialize)]
struct ErrorBody {
    detail: Detail,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

/// Whether this is an error of the API itself, rather than of something on the way to it.
fn has_detail(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Any {
        #[serde(rename = "detail")]
        _detail: serde::de::IgnoredAny,
    }
    serde_json::from_slice::<Any>(body).is_ok()
}

/// Reads an answer that is not a 200. `told` is what its headers ask for.
pub fn refusal(status: u16, body: &[u8], told: Option<Duration>) -> Refusal {
    let Detail {
        status: code,
        message,
    } = serde_json::from_slice::<ErrorBody>(body).map_or(
        Detail {
            status: String::new(),
            message: String::new(),
        },
        |body| body.detail,
    );
    let said = || printable(&format!("{code} {message}"));
    match status {
        400 | 404 if code == "voice_not_found" => Refusal::NotFound,
        404 | 405 => Refusal::NoSuchEndpoint(status),
        401 => Refusal::Unauthorized(status, said()),
        403 if code == "missing_permissions" => Refusal::Unauthorized(status, said()),
        402 | 403 => Refusal::Forbidden(status, said()),
        400 | 422 if has_detail(body) => Refusal::Rejected(status, said()),
        413 | 414 | 431 => Refusal::Rejected(status, said()),
        429 => Refusal::Throttled {
            code: printable(&code),
            told,
        },
        _ => Refusal::Unavailable(Trouble {
            kind: match status {
                500 => TroubleKind::Internal,
                _ => TroubleKind::Status,
            },
            detail: format!("HTTP {status} {}", said()).trim_end().to_owned(),
            told,
        }),
    }
}

/// Somebody else's text, fit for a log line.
pub fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: &str) -> Vec<u8> {
        format!(r#"{{"detail":{{"status":"{code}","message":"text"}}}}"#).into_bytes()
    }

    #[test]
    fn each_status_says_what_to_do() {
        use Refusal::*;

        let not_found = body("voice_not_found");
        assert_eq!(refusal(400, &not_found, None), NotFound);
        assert_eq!(refusal(404, &not_found, None), NotFound);
        assert_eq!(refusal(404, b"<html>", None), NoSuchEndpoint(404));
        assert_eq!(refusal(404, b"", None), NoSuchEndpoint(404));
        assert_eq!(
            refusal(404, &body("something_else"), None),
            NoSuchEndpoint(404)
        );
        assert_eq!(refusal(405, b"", None), NoSuchEndpoint(405));
        for code in ["invalid_api_key", "missing_permissions", "quota_exceeded"] {
            assert_eq!(
                refusal(401, &body(code), None),
                Unauthorized(401, format!("{code} text"))
            );
        }
        assert_eq!(
            refusal(403, &body("missing_permissions"), None),
            Unauthorized(403, "missing_permissions text".into())
        );
        assert_eq!(
            refusal(401, &not_found, None),
            Unauthorized(401, "voice_not_found text".into())
        );
        assert_eq!(refusal(403, b"", None), Forbidden(403, String::new()));
        assert_eq!(refusal(402, b"", None), Forbidden(402, String::new()));
        for status in [413, 414, 431] {
            assert_eq!(refusal(status, b"", None), Rejected(status, String::new()));
        }
        for status in [400, 422] {
            let rejected = Rejected(status, "odd text".into());
            assert_eq!(refusal(status, &body("odd"), None), rejected);
            assert!(matches!(refusal(status, b"<html>", None), Unavailable(_)));
        }
        assert_eq!(
            refusal(
                422,
                br#"{"detail":[{"loc":["query"],"msg":"m","type":"t"}]}"#,
                None
            ),
            Rejected(422, String::new())
        );
        let told = Some(Duration::from_secs(3));
        for code in ["too_many_concurrent_requests", "system_busy"] {
            assert_eq!(
                refusal(429, &body(code), told),
                Throttled {
                    code: code.into(),
                    told
                }
            );
        }
        for status in [
            301, 302, 307, 304, 204, 406, 408, 409, 410, 425, 451, 502, 503, 504, 529, 599,
        ] {
            assert!(
                matches!(
                    refusal(status, b"<html>", told),
                    Unavailable(Trouble { kind: TroubleKind::Status, told: t, .. }) if t == told
                ),
                "{status}"
            );
        }
        assert!(matches!(
            refusal(500, &not_found, None),
            Unavailable(Trouble {
                kind: TroubleKind::Internal,
                ..
            })
        ));
    }

    #[test]
    fn the_providers_words_are_made_fit_for_a_log_line() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(printable(&"x".repeat(1000)).len(), 200);
    }
}
