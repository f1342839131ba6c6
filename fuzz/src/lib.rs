//! What must hold of input from outside, whatever it is. Each function is the body of a fuzz target of its name, and
//! runs over its corpus with the ordinary tests (`tests/it/corpus.rs`).

use std::str;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use voice_sync::core::provider_state::MAX_RETRY_AFTER;
use voice_sync::core::verdict::{AgeFrom, OnTimeout, Rules, judge};
use voice_sync::daemon::{AllowedHosts, Health, StatusCache, answer, router};
use voice_sync::events::publisher::{Kind, Publisher};
use voice_sync::events::queue::named_by;
use voice_sync::provider::error::{ProviderError, read_error};
use voice_sync::provider::state::backoff;
use voice_sync::provider::wire;
use voice_sync::store::DatabaseUrl;
use voice_sync::telemetry::exposition::Metrics;

/// Voices that a list may have at the most, whatever it says.
const MOST_VOICES: usize = 1000;

fn rules() -> Rules {
    Rules {
        fail_after: Some(Duration::from_secs(24 * 60 * 60)),
        age_from: AgeFrom::default(),
        on_timeout: OnTimeout::Complete,
        models: None,
    }
}

/// An answer of the list. What can be read can be judged.
pub fn list_answer(data: &[u8]) {
    if let Ok(page) = wire::list_page(data) {
        assert!(page.voices.len() <= MOST_VOICES);
        for voice in &page.voices {
            judge(voice, Duration::MAX, &rules());
        }
    }
}

/// An answer about one voice.
pub fn single_answer(data: &[u8]) {
    if let Ok(voice) = wire::voice(data) {
        judge(&voice, Duration::ZERO, &rules());
        judge(&voice, Duration::MAX, &rules());
    }
}

/// The body of an error, behind two bytes of its status. Only the API's own word says that a voice is not there, and
/// whatever is logged is short and printable.
pub fn error_body(data: &[u8]) {
    let Some((status, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let status = 100 + u16::from_be_bytes(*status) % 500;
    let error = read_error(status, body, None);
    if let ProviderError::NotFound = error {
        assert!(matches!(status, 400 | 404), "{status}");
        let text = str::from_utf8(body).expect("it is JSON");
        assert!(text.contains("voice") || text.contains("\\u"), "{text:?}");
    }
    let said = error.to_string();
    assert!(!said.contains(char::is_control), "{said:?}");
    assert!(said.chars().count() < 1000, "{said:?}");
}

/// The headers that tell how long to wait, each on a line of its own.
pub fn retry_after(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let [seconds, milliseconds, reset] = [(); 3].map(|()| lines.next());
    let retry_after = backoff::retry_after(
        |name| match name {
            "retry-after" => seconds,
            "retry-after-ms" => milliseconds,
            "x-ratelimit-reset" => reset,
            _ => None,
        },
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    );
    assert!(
        retry_after.is_none_or(|retry_after| retry_after <= MAX_RETRY_AFTER),
        "{retry_after:?}"
    );
}

/// The URL of a database. Its password is in no message.
pub fn database_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let said = match DatabaseUrl::parse(text) {
        Ok(url) => url.to_string(),
        Err(error) => error.to_string(),
    };
    assert!(!said.contains('\0') || text.contains('\0'));
    let password = "correct-horse";
    let with_password = text.replacen("://", &format!("://someone:{password}@"), 1);
    if with_password != text && !text.contains(password) && !text.contains('@') {
        let said = match DatabaseUrl::parse(&with_password) {
            Ok(DatabaseUrl::Sqlite(_)) => return,
            Ok(url) => url.to_string(),
            Err(error) => error.to_string(),
        };
        let is_sqlite = text.trim_start().to_ascii_lowercase().starts_with("sqlite");
        assert!(is_sqlite || !said.contains(password), "{said}");
    }
}

/// The URL of a Redis. Its password is in no message.
pub fn redis_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let password = url::Url::parse(text)
        .ok()
        .and_then(|url| url.password().map(str::to_owned));
    let said = match Publisher::new(text, Kind::PubSub, "events:".to_owned()) {
        Ok(relay) => {
            relay.bus();
            relay.address()
        }
        Err(error) => error.to_string(),
    };
    if let Some(password) = password.filter(|password| password.len() > 7) {
        // As a URL is read: without these, wherever they stand.
        let text = text.replace(['\n', '\r', '\t'], "");
        let elsewhere = text.matches(&password).count() > 1;
        assert!(elsewhere || !said.contains(&password), "{said}");
    }
}

/// A job of the application's queue.
pub fn queue_job(data: &[u8]) {
    if let Some(name) = named_by(data) {
        assert!(!name.is_empty() && !name.contains('\0'), "{name:?}");
    }
}

/// What a client sends to `--listen` before it closes its half of the connection.
pub fn listen(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let lookout = StatusCache::new(|| Box::pin(async { Err("no database here".to_owned()) }));
        let router = router(
            Arc::new(Health::default()),
            Arc::new(Metrics::default()),
            Arc::new(lookout),
            AllowedHosts::new(Vec::new()),
            None,
        );
        let (mut client, server) = duplex(1 << 20);
        let serving = tokio::spawn(answer(server, router));
        // It may have been told to go.
        let _sent = client.write_all(data).await;
        let _closed = client.shutdown().await;
        let mut said = Vec::new();
        let _read = client.read_to_end(&mut said).await;
        serving.await.expect("no panic");
        assert!(said.is_empty() || said.starts_with(b"HTTP/1."), "{said:?}");
    });
}
