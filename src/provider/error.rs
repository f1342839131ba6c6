//! Errors of the provider, by what the caller does about them.

use std::time::Duration;

use serde_json::Value;

use crate::core::format::printable;
use crate::core::lookup::{Unavailable, UnavailableKind};

/// A request without the expected result. Only [`ProviderError::NotFound`] says anything about a voice, and it has to
/// be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// 400 or 404 with `voice_not_found`: confirm it, then fail the voice.
    #[error("voice_not_found")]
    NotFound,
    /// 404 or 405 of the API with another code: this base URL has no such endpoint. Use another endpoint.
    #[error("no such endpoint (HTTP {0})")]
    NoSuchEndpoint(u16),
    /// 401, or 403 because of the key's permissions: stop, the key does not work.
    #[error("HTTP {0} {1}")]
    Unauthorized(u16, String),
    /// 402 or 403: the plan does not include this, or the voice belongs to somebody else.
    #[error("HTTP {0} {1}")]
    Forbidden(u16, String),
    /// The provider rejects the request: split it, then set the voice aside.
    #[error("HTTP {0} {1}")]
    Rejected(u16, String),
    /// 429: wait, at least as long as the provider asks.
    #[error("throttled: {code}")]
    Throttled {
        /// `concurrent_limit_exceeded` (before: `too_many_concurrent_requests`), `rate_limit_exceeded` or
        /// `system_busy`.
        code: String,
        /// The `Retry-After` of the provider.
        retry_after: Option<Duration>,
    },
    /// The provider answers other requests but not this one: one of its voices may be the cause. Isolate it.
    #[error("{0}")]
    Unanswerable(Unavailable),
    /// Anything else: try again later.
    #[error("{0}")]
    Unavailable(Unavailable),
}

/// The error body of the API, with the fields that are used. Its documentation has `{"detail": {"type", "code",
/// "message", "request_id", "param", "status"}}`, where `status` is the former name of `code`. `detail` may also be a
/// text, or a list of what is wrong with a request.
struct ErrorBody {
    code: String,
    message: String,
    request_id: String,
}

impl ErrorBody {
    /// Reads a body; `None` if it does not come from the API but from something in between, such as a proxy.
    fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let detail = body.get("detail")?;
        let text = |name: &str| {
            let text = detail.get(name).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let code = match text("code") {
            code if code.is_empty() => text("status"),
            code => code,
        };
        let message = match detail {
            Value::String(message) => message.clone(),
            Value::Object(_) => text("message"),
            Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => String::new(),
        };
        Some(Self {
            code,
            message,
            request_id: text("request_id"),
        })
    }

    /// The error in one line, with the id by which the provider finds the request in its logs.
    fn says(&self) -> String {
        let Self {
            code,
            message,
            request_id,
        } = self;
        let mut says = format!("{code} {message}");
        if !request_id.is_empty() {
            says.push_str(&format!(" (request_id {request_id})"));
        }
        printable(&says)
    }
}

/// Classifies an answer that is not a 200. `retry_after` comes from its headers.
///
/// Only an answer of the API itself says anything about a voice, an endpoint or a key. Any answer of a proxy is an
/// outage, whatever its status. The exceptions are the statuses for requests that are too large.
pub fn read_error(status: u16, body: &[u8], retry_after: Option<Duration>) -> ProviderError {
    let body = ErrorBody::read(body);
    let code = body.as_ref().map_or("", |body| body.code.as_str());
    let says = || body.as_ref().map(ErrorBody::says).unwrap_or_default();
    let is_api = body.is_some();
    match status {
        400 | 404 if code == "voice_not_found" => ProviderError::NotFound,
        404 | 405 if is_api => ProviderError::NoSuchEndpoint(status),
        401 if is_api => ProviderError::Unauthorized(status, says()),
        403 if code == "missing_permissions" => ProviderError::Unauthorized(status, says()),
        402 | 403 if is_api => ProviderError::Forbidden(status, says()),
        400 | 422 if is_api => ProviderError::Rejected(status, says()),
        413 | 414 | 431 => ProviderError::Rejected(status, says()),
        429 => ProviderError::Throttled {
            code: printable(code),
            retry_after,
        },
        _ => ProviderError::Unavailable(Unavailable {
            kind: match status {
                500 => UnavailableKind::Internal,
                _ => UnavailableKind::Status,
            },
            detail: format!("HTTP {status} {}", says()).trim_end().to_owned(),
            retry_after,
        }),
    }
}

/// Whether a 429 is about concurrent requests, not about requests per time.
pub fn is_about_concurrency(code: &str) -> bool {
    matches!(
        code,
        "concurrent_limit_exceeded" | "too_many_concurrent_requests"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lookup::Unavailable as Why;

    /// The same error in each form that the API has, or has had.
    fn forms(code: &str) -> [Vec<u8>; 5] {
        [
            format!(r#"{{"detail":{{"status":"{code}","message":"text"}}}}"#),
            format!(r#"{{"detail":{{"code":"{code}","message":"text"}}}}"#),
            format!(
                r#"{{"detail":{{"type":"t","code":"{code}","message":"text","request_id":null,"param":null,"status":null}}}}"#
            ),
            format!(r#"{{"detail":{{"code":null,"status":"{code}","message":"text"}}}}"#),
            format!(r#"{{"detail":{{"code":"{code}","status":"legacy","message":"text","more":[1]}}}}"#),
        ]
        .map(String::into_bytes)
    }

    #[test]
    fn classifies_each_status_in_each_form_of_the_body() {
        use ProviderError::*;

        let retry_after = Some(Duration::from_secs(3));
        for not_found in forms("voice_not_found") {
            assert_eq!(read_error(400, &not_found, None), NotFound);
            assert_eq!(read_error(404, &not_found, None), NotFound);
            assert_eq!(
                read_error(401, &not_found, None),
                Unauthorized(401, "voice_not_found text".into())
            );
            assert!(matches!(
                read_error(500, &not_found, None),
                Unavailable(Why {
                    kind: UnavailableKind::Internal,
                    ..
                })
            ));
        }
        for other in forms("something_else") {
            assert_eq!(read_error(404, &other, None), NoSuchEndpoint(404));
            assert_eq!(read_error(405, &other, None), NoSuchEndpoint(405));
            for status in [402, 403] {
                let forbidden = Forbidden(status, "something_else text".into());
                assert_eq!(read_error(status, &other, None), forbidden);
            }
            for status in [400, 422] {
                let rejected = Rejected(status, "something_else text".into());
                assert_eq!(read_error(status, &other, None), rejected);
            }
        }
        for code in ["invalid_api_key", "missing_permissions", "quota_exceeded"] {
            for body in forms(code) {
                let unauthorized = Unauthorized(401, format!("{code} text"));
                assert_eq!(read_error(401, &body, None), unauthorized);
            }
        }
        for body in forms("missing_permissions") {
            assert_eq!(
                read_error(403, &body, None),
                Unauthorized(403, "missing_permissions text".into())
            );
        }
        for code in [
            "too_many_concurrent_requests",
            "concurrent_limit_exceeded",
            "rate_limit_exceeded",
            "system_busy",
        ] {
            for body in forms(code) {
                let code = code.to_owned();
                assert_eq!(
                    read_error(429, &body, retry_after),
                    Throttled { code, retry_after }
                );
            }
        }
        for status in [413, 414, 431] {
            assert_eq!(
                read_error(status, b"", None),
                Rejected(status, String::new())
            );
        }
    }

    #[test]
    fn error_detail_may_be_a_string_or_a_list() {
        use ProviderError::*;

        let list = br#"{"detail":[{"loc":["query"],"msg":"m","type":"t"}]}"#;
        assert_eq!(read_error(422, list, None), Rejected(422, String::new()));
        let text = br#"{"detail":"Not Found"}"#;
        assert_eq!(read_error(404, text, None), NoSuchEndpoint(404));
        let null = br#"{"detail":null}"#;
        assert_eq!(read_error(400, null, None), Rejected(400, String::new()));
    }

    #[test]
    fn answer_without_detail_counts_as_unavailable() {
        for body in [
            &b"<html>"[..],
            b"",
            b"null",
            b"[]",
            b"{}",
            br#"{"error":"no"}"#,
        ] {
            for status in [
                301, 302, 307, 304, 204, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 422,
                425, 451, 502, 503, 504, 529, 599,
            ] {
                let retry_after = Some(Duration::from_secs(3));
                assert!(
                    matches!(
                        read_error(status, body, retry_after),
                        ProviderError::Unavailable(Why { kind: UnavailableKind::Status, retry_after: t, .. }) if t == retry_after
                    ),
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn error_message_contains_the_request_id() {
        let body = br#"{"detail":{"code":"invalid_api_key","message":"no","request_id":"r1"}}"#;
        assert_eq!(
            read_error(401, body, None).to_string(),
            "HTTP 401 invalid_api_key no (request_id r1)"
        );
    }

    #[test]
    fn provider_messages_are_sanitised_and_shortened() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(printable(&"x".repeat(1000)).len(), 200);
    }
}
