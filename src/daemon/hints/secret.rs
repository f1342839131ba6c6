//! The secret of a hint: the key of its signature, or its bearer token. Pure: the current time is an argument.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// An older signature is not valid, as in the official SDK. A signature from the future is valid there, and here.
const TOLERANCE: Duration = Duration::from_secs(30 * 60);
const DIGEST_BYTES: usize = 32;

/// A shared secret. The comparison takes constant time.
pub struct Secret {
    key: Hmac<Sha256>,
    /// The HMAC of the secret, with the secret itself as the key.
    code: [u8; DIGEST_BYTES],
}

/// Why a signature is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSignature {
    #[error("the signature is not of the form t=<seconds>,v0=<digest>")]
    Form,
    #[error("the signature is older than 30 minutes")]
    Old,
    #[error("the signature does not match the body")]
    Mismatch,
}

impl Secret {
    pub fn new(secret: &[u8]) -> Self {
        let key = Hmac::new_from_slice(secret).expect("HMAC takes keys of any length");
        let code = code(&key, &[secret]).finalize().into_bytes().into();
        Self { key, code }
    }

    /// Whether a token equals this secret.
    pub(in crate::daemon) fn is(&self, token: &[u8]) -> bool {
        code(&self.key, &[token]).verify_slice(&self.code).is_ok()
    }

    /// Checks a signature `t=<seconds since 1970>,v0=<digest>`. The digest is HMAC-SHA256 of `<t>.<body>` in lower-case
    /// hexadecimal. Accepts what `webhooks.construct_event` of the official SDK for Python accepts: the last of several
    /// values counts, and parts with other names are ignored.
    pub(super) fn verify(
        &self,
        signature: &[u8],
        body: &[u8],
        now: Duration,
    ) -> Result<(), InvalidSignature> {
        let (mut time, mut digest) = (None, None);
        for part in signature.split(|byte| *byte == b',') {
            if let Some(value) = part.strip_prefix(b"t=") {
                time = Some(value);
            } else if let Some(value) = part.strip_prefix(b"v0=") {
                digest = Some(value);
            }
        }
        let (time, digest) = time.zip(digest).ok_or(InvalidSignature::Form)?;
        let seconds = seconds(time).ok_or(InvalidSignature::Form)?;
        // In milliseconds, as in the SDK: a signature is invalid as soon as it is older than 30 minutes.
        if seconds * 1000.0 < now.as_millis() as f64 - TOLERANCE.as_millis() as f64 {
            return Err(InvalidSignature::Old);
        }
        let digest = digest_of(digest).ok_or(InvalidSignature::Mismatch)?;
        code(&self.key, &[time, b".", body])
            .verify_slice(&digest)
            .map_err(|_| InvalidSignature::Mismatch)
    }
}

fn code(key: &Hmac<Sha256>, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut code = key.clone();
    parts.iter().for_each(|part| code.update(part));
    code
}

/// Parses an integer of any size like Python's `int`, except for non-ASCII digits.
fn seconds(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut groups = digits.split('_');
    let is_group = |group: &str| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
    groups
        .all(is_group)
        .then(|| text.replace('_', "").parse().ok())?
}

fn digest_of(hex: &[u8]) -> Option<[u8; DIGEST_BYTES]> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut digest = [0; DIGEST_BYTES];
    if hex.len() != 2 * DIGEST_BYTES {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn signed(time: &str, body: &[u8]) -> String {
        let key = Secret::new(b"secret").key;
        let code = code(&key, &[time.as_bytes(), b".", body]);
        let digest = code.finalize().into_bytes();
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("t={time},v0={digest}")
    }

    fn verify(signature: &str, body: &[u8]) -> Result<(), InvalidSignature> {
        Secret::new(b"secret").verify(signature.as_bytes(), body, NOW)
    }

    #[test]
    fn signature_is_valid_for_30_minutes() {
        for (time, expected) in [
            (NOW.as_secs(), Ok(())),
            (NOW.as_secs() + 86_400, Ok(())),
            (u64::MAX, Ok(())),
            (NOW.as_secs() - 1800, Ok(())),
            (NOW.as_secs() - 1801, Err(InvalidSignature::Old)),
            (0, Err(InvalidSignature::Old)),
        ] {
            let signature = signed(&time.to_string(), b"{}");
            assert_eq!(verify(&signature, b"{}"), expected, "{time}");
        }
    }

    #[test]
    fn rejects_wrong_and_malformed_signatures() {
        let right = signed("1800000000", b"{}");
        assert_eq!(verify(&right, b"{} "), Err(InvalidSignature::Mismatch));
        let other = Secret::new(b"Secret").verify(right.as_bytes(), b"{}", NOW);
        assert_eq!(other, Err(InvalidSignature::Mismatch));
        let digest = right.split_once(",v0=").expect("two parts").1;
        for wrong in [
            String::new(),
            "t=1800000000".to_owned(),
            format!("v0={digest}"),
            format!("t=,v0={digest}"),
            format!("t=1e9,v0={digest}"),
            format!("t=1800000000,v0={}", digest.to_uppercase()),
            format!("t=1800000000,v0={}", &digest[1..]),
            format!("t=1800000000,v0={digest}00"),
            format!("t=1800000000, v0={digest}"),
            format!("t=1800000001,v0={digest}"),
            format!("{right},v0=00"),
            "t=1800000000,v0=".to_owned(),
            format!("t=1800000000,v0={}", "+f".repeat(32)),
        ] {
            assert!(verify(&wrong, b"{}").is_err(), "{wrong}");
        }
        for also_right in [
            format!("v0={digest},t=1800000000"),
            format!("v1=00,t=5,{right},x"),
        ] {
            assert_eq!(verify(&also_right, b"{}"), Ok(()), "{also_right}");
        }
    }

    #[test]
    fn token_must_equal_the_secret() {
        let secret = Secret::new(b"secret");
        assert!(secret.is(b"secret"));
        for other in [b"".as_slice(), b"secre", b"secret ", b"Secret"] {
            assert!(!secret.is(other), "{other:?}");
        }
    }
}
