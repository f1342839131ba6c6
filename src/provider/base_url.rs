//! The provider's base URL. It is checked, so that the key can be sent to it.

use std::fmt;

use url::{Host, Url};

/// `https://host[:port][/path]`, or `http://` on this host. It is configurable, because data-residency hosts and
/// gateways have other URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

/// Why a URL cannot be the provider's base URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaseUrl {
    /// It does not parse, or has another scheme.
    #[error("it is not an http(s) URL; an example is https://api.elevenlabs.io")]
    NotAUrl,
    /// The key would be sent unencrypted.
    #[error(
        "http:// would send the key unencrypted to {0}; use https:// (http:// is allowed for this host only)"
    )]
    InTheClear(String),
    /// The paths of the API contain its version.
    #[error("it ends in /v1 or /v2; remove that, as in https://api.elevenlabs.io")]
    Version,
    /// A user, password, query or fragment has no meaning here, and could be a secret.
    #[error("it has a user, password, query or fragment; use scheme, host, port and path only")]
    TooMuch,
}

impl BaseUrl {
    /// Checks a URL that a user gave.
    pub fn parse(text: &str) -> Result<Self, InvalidBaseUrl> {
        let url = Url::parse(text.trim()).map_err(|_| InvalidBaseUrl::NotAUrl)?;
        let host = url.host().ok_or(InvalidBaseUrl::NotAUrl)?;
        let loopback = match host {
            Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => return Err(InvalidBaseUrl::InTheClear(host.to_string())),
            _ => return Err(InvalidBaseUrl::NotAUrl),
        }
        let path = url.path().trim_end_matches('/');
        if path.ends_with("/v1") || path.ends_with("/v2") {
            return Err(InvalidBaseUrl::Version);
        }
        let bare = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        bare.then_some(Self(url)).ok_or(InvalidBaseUrl::TooMuch)
    }

    /// Whether it is http, and therefore on this host.
    pub fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }
}

impl fmt::Display for BaseUrl {
    /// Without a trailing slash, so that a path can follow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_unencrypted_base_urls_except_loopback() {
        for text in [
            "https://api.elevenlabs.io",
            "https://api.eu.residency.elevenlabs.io/",
            "https://gateway.example/eleven/",
            "http://127.0.0.1:8900",
            "http://localhost:8900",
            "http://[::1]:8900",
        ] {
            assert!(BaseUrl::parse(text).is_ok(), "{text}");
        }
        for (text, error) in [
            (
                "http://api.elevenlabs.io",
                InvalidBaseUrl::InTheClear("api.elevenlabs.io".into()),
            ),
            (
                "http://localhost.example",
                InvalidBaseUrl::InTheClear("localhost.example".into()),
            ),
            (
                "http://10.0.0.1",
                InvalidBaseUrl::InTheClear("10.0.0.1".into()),
            ),
            ("https://api.elevenlabs.io/v1/", InvalidBaseUrl::Version),
            ("ftp://127.0.0.1", InvalidBaseUrl::NotAUrl),
            ("api.elevenlabs.io", InvalidBaseUrl::NotAUrl),
            ("", InvalidBaseUrl::NotAUrl),
            ("https://user:secret@host", InvalidBaseUrl::TooMuch),
            ("https://host?key=secret", InvalidBaseUrl::TooMuch),
        ] {
            assert_eq!(BaseUrl::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn base_url_may_have_a_path() {
        let url = BaseUrl::parse("https://gateway.example/eleven/").expect("parses");
        assert_eq!(url.to_string(), "https://gateway.example/eleven");
    }
}
