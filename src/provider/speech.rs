//! Text-to-speech requests. Their audio is not used.

use serde_json::json;
use tokio::time::Instant;

use super::classify::{class, retry_after};
use super::error::{ProviderError, read_error};
use super::request::{InFlight, MAX_ERROR_BYTES, read};
use super::{Provider, REQUEST_TIMEOUT};
use crate::core::lookup::UnavailableKind;
use crate::core::nudge::NudgeAnswer;
use crate::core::voice::ProviderVoiceId;
use crate::telemetry::metrics::Endpoint;

/// The smallest format that every plan includes.
const FORMAT: &str = "mp3_22050_32";
/// Error codes that mean that the voice cannot speak, whatever the request. Other errors may be caused by the
/// request.
const VOICE_CODES: [&str; 3] = [
    "voice_not_found",
    "voice_access_denied",
    "voice_not_fine_tuned",
];
/// The maximum number of bytes of audio that are read.
const MAX_AUDIO_BYTES: usize = 1024 * 1024;

/// What to say, and with which model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speech {
    pub text: String,
    pub model: String,
}

impl Speech {
    /// The number of characters that the provider charges for.
    pub fn characters(&self) -> u64 {
        self.text.chars().count() as u64
    }
}

impl Provider {
    /// Whether a text-to-speech request may be sent now: it is never used as a probe.
    pub fn may_speak(&self) -> bool {
        !self.is_down() && self.traffic.opened() == 0 && self.held_for().is_zero()
    }

    /// Sends one text-to-speech request, without repetition. It does not count for the concurrency limit, because
    /// lookups would wait for it. Its errors do not count for the circuit breaker, the concurrency limit or the key.
    pub async fn speak(&self, voice: &ProviderVoiceId, speech: &Speech) -> NudgeAnswer {
        let begun = Instant::now();
        let spoken = {
            let _in_flight = InFlight::new(&self.metrics);
            self.send_speech(voice, speech).await
        };
        self.metrics
            .ended(Endpoint::Speech, class(&spoken), begun.elapsed());
        match spoken {
            Ok(()) => NudgeAnswer::Spoke,
            Err(error) => answer(error),
        }
    }

    async fn send_speech(
        &self,
        voice: &ProviderVoiceId,
        speech: &Speech,
    ) -> Result<(), ProviderError> {
        let url = format!(
            "{}/v1/text-to-speech/{voice}?output_format={FORMAT}",
            self.base
        );
        let body = json!({"text": speech.text, "model_id": speech.model});
        let request = self
            .client()?
            .post(url)
            .header("xi-api-key", self.key.clone())
            .header("content-type", "application/json")
            .timeout(REQUEST_TIMEOUT)
            .body(body.to_string());
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let is_audio = status.is_success();
        let most = match is_audio {
            true => MAX_AUDIO_BYTES,
            false => MAX_ERROR_BYTES,
        };
        let body = read(response, most, |error| self.no_answer(&error)).await;
        if is_audio {
            // The voice works, however much of the audio was read.
            return Ok(());
        }
        let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
        let body = self.without_key(&body);
        Err(read_error(
            status.as_u16(),
            body.as_bytes(),
            retry_after(&headers),
        ))
    }
}

fn answer(error: ProviderError) -> NudgeAnswer {
    let says = error.to_string();
    let is_about_a_voice = VOICE_CODES.iter().any(|code| says.contains(code));
    match error {
        // An exceeded quota is also answered with 401, and a plan without text-to-speech with 402.
        ProviderError::Unauthorized(..) | ProviderError::Forbidden(402, _) => {
            NudgeAnswer::Refused(says)
        }
        ProviderError::Throttled { retry_after, .. } => NudgeAnswer::Throttled(says, retry_after),
        ProviderError::NotFound => NudgeAnswer::Silent(says),
        _ if says.contains("quota_exceeded") => NudgeAnswer::Refused(says),
        ProviderError::Forbidden(..) | ProviderError::Rejected(..) if is_about_a_voice => {
            NudgeAnswer::Silent(says)
        }
        ProviderError::Forbidden(..)
        | ProviderError::Rejected(..)
        | ProviderError::NoSuchEndpoint(_) => NudgeAnswer::Rejected(says),
        ProviderError::Unanswerable(why) | ProviderError::Unavailable(why) => match why.kind {
            UnavailableKind::Connect => NudgeAnswer::Unsent(says),
            UnavailableKind::Timeout
            | UnavailableKind::Broken
            | UnavailableKind::Internal
            | UnavailableKind::Status
            | UnavailableKind::Throttled
            | UnavailableKind::NotAsked
            | UnavailableKind::TooLarge
            | UnavailableKind::Unreadable => NudgeAnswer::Unclear(says),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_errors_about_the_voice_count_as_silent() {
        let detail = |code: &str| format!(r#"{{"detail":{{"code":"{code}","message":"x"}}}}"#);
        for (status, code, expected) in [
            (401, "quota_exceeded", "refused"),
            (401, "missing_permissions", "refused"),
            (403, "missing_permissions", "refused"),
            (402, "payment_required", "refused"),
            (400, "quota_exceeded", "refused"),
            (400, "voice_not_found", "silent"),
            (404, "voice_not_found", "silent"),
            (403, "voice_access_denied", "silent"),
            (400, "invalid_uid", "rejected"),
            (422, "model_not_found", "rejected"),
            (403, "only_for_creator+", "rejected"),
            (404, "not_found", "rejected"),
            (500, "internal_server_error", "unclear"),
            (503, "system_busy", "unclear"),
        ] {
            let error = read_error(status, detail(code).as_bytes(), None);
            let found = match answer(error) {
                NudgeAnswer::Refused(_) => "refused",
                NudgeAnswer::Silent(_) => "silent",
                NudgeAnswer::Rejected(_) => "rejected",
                NudgeAnswer::Unclear(_) => "unclear",
                NudgeAnswer::Spoke => "spoke",
                NudgeAnswer::Throttled(..) => "throttled",
                NudgeAnswer::Unsent(_) => "unsent",
            };
            assert_eq!(found, expected, "{status} {code}");
        }
        let schema = br#"{"detail":[{"loc":["body","model_id"],"msg":"x","type":"missing"}]}"#;
        let schema = answer(read_error(422, schema, None));
        assert!(matches!(schema, NudgeAnswer::Rejected(_)), "{schema:?}");
        let proxy = answer(read_error(403, b"<html>", None));
        assert!(matches!(proxy, NudgeAnswer::Unclear(_)), "{proxy:?}");
        let soon = Some(Duration::from_secs(9));
        let throttled = answer(read_error(429, b"{}", soon));
        assert!(
            matches!(throttled, NudgeAnswer::Throttled(_, asked) if asked == soon),
            "{throttled:?}"
        );
    }
}
