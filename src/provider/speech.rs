//! Text-to-speech, of which nothing is wanted but that it happened.

use std::sync::atomic::Ordering;

use serde_json::json;
use tokio::time::Instant;

use super::classify::{class, retry_after};
use super::error::{ProviderError, refusal};
use super::request::{InFlight, MAX_ERROR_BYTES, read};
use super::{Provider, REQUEST_TIMEOUT};
use crate::core::nudge::NudgeAnswer;
use crate::core::voice::ProviderVoiceId;
use crate::telemetry::metrics::Endpoint;

/// The smallest that every plan has.
const FORMAT: &str = "mp3_22050_32";
/// Audio is read no further than this.
const MAX_AUDIO_BYTES: usize = 1024 * 1024;

/// What to say, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speech {
    pub text: String,
    pub model: String,
}

impl Speech {
    /// What the provider charges for.
    pub fn characters(&self) -> u64 {
        self.text.chars().count() as u64
    }
}

impl Provider {
    /// Whether a request for speech may be sent now: it is no probe.
    pub fn may_speak(&self) -> bool {
        !self.is_down() && self.traffic.opened() == 0 && self.held_for().is_zero()
    }

    /// Has a voice say something, once: nothing is ever repeated. It takes no place among the lookups, which would wait
    /// for it; and what is wrong with it counts neither for the circuit breaker nor for the concurrency nor for the key.
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
        self.requests.fetch_add(1, Ordering::Relaxed);
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
            // It speaks, however much of that was heard.
            return Ok(());
        }
        let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
        let body = self.without_key(&body);
        Err(refusal(
            status.as_u16(),
            body.as_bytes(),
            retry_after(&headers),
        ))
    }
}

fn answer(error: ProviderError) -> NudgeAnswer {
    let says = error.to_string();
    match error {
        // 401 is also what an exceeded quota is answered with, and 402 a plan without this.
        ProviderError::Unauthorized(..)
        | ProviderError::Forbidden(402, _)
        | ProviderError::NoSuchEndpoint(_) => NudgeAnswer::stopped(says),
        ProviderError::Throttled { retry_after, .. } => NudgeAnswer::throttled(says, retry_after),
        _ if says.contains("quota_exceeded") => NudgeAnswer::stopped(says),
        ProviderError::NotFound | ProviderError::Forbidden(..) | ProviderError::Rejected(..) => {
            NudgeAnswer::Silent(says)
        }
        ProviderError::Unanswerable(_) | ProviderError::Unavailable(_) => {
            NudgeAnswer::Unclear(says)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::nudge::Nudge;

    #[test]
    fn only_what_is_said_of_the_voice_makes_it_silent() {
        let detail = |code: &str| format!(r#"{{"detail":{{"code":"{code}","message":"x"}}}}"#);
        for (status, code, expected) in [
            (401, "quota_exceeded", Nudge::Refused),
            (401, "missing_permissions", Nudge::Refused),
            (403, "missing_permissions", Nudge::Refused),
            (402, "payment_required", Nudge::Refused),
            (400, "quota_exceeded", Nudge::Refused),
            (404, "not_found", Nudge::Refused),
            (429, "rate_limit_exceeded", Nudge::Refused),
            (400, "voice_not_found", Nudge::Silent),
            (404, "voice_not_found", Nudge::Silent),
            (403, "voice_access_denied", Nudge::Silent),
            (422, "invalid_voice", Nudge::Silent),
            (500, "internal_server_error", Nudge::Unclear),
            (503, "system_busy", Nudge::Unclear),
        ] {
            let error = refusal(status, detail(code).as_bytes(), None);
            assert_eq!(answer(error).nudge(), expected, "{status} {code}");
        }
        let proxy = refusal(403, b"<html>", None);
        assert_eq!(answer(proxy).nudge(), Nudge::Unclear);
        let soon = Some(Duration::from_secs(9));
        let throttled = answer(refusal(429, b"{}", soon));
        assert!(
            matches!(throttled, NudgeAnswer::Refused { pause, .. } if pause == Duration::from_secs(9))
        );
    }
}
