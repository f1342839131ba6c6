//! Pings to a dead man's switch, which alerts when the pings stop: `/start` at the beginning of a run, and at its end
//! the URL itself, or `/<exit code>` (<https://healthchecks.io/docs/http_api/>).

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret, SecretString};
use tracing::warn;
use url::{Host, Url};

use crate::core::exit::Exit;

/// A run must not wait long for a server that does not answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: usize = 2;

pub(super) struct Ping {
    /// The path is secret.
    url: Url,
    client: Client,
}

impl Ping {
    pub(super) fn new(url: &SecretString) -> anyhow::Result<Self> {
        let url = Url::parse(url.expose_secret()).context("the ping URL (--ping-url) is no URL")?;
        let is_local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => bail!("the ping URL (--ping-url) names no host"),
        };
        match url.scheme() {
            "https" => {}
            "http" if is_local => {}
            scheme => bail!("the ping URL (--ping-url) must be https, and not {scheme}"),
        }
        crate::tls::install();
        let mut builder = Client::builder()
            .user_agent(concat!("voice-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .timeout(TIMEOUT);
        if url.scheme() == "http" {
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().context(
            "no HTTPS client could be made for --ping-url: are CA certificates installed?",
        )?;
        Ok(Self { url, client })
    }

    pub(super) async fn start(&self) {
        self.send("start").await;
    }

    pub(super) async fn end(&self, exit: Exit) {
        let signal = match exit == Exit::Success {
            true => String::new(),
            false => exit.code().to_string(),
        };
        self.send(&signal).await;
    }

    /// An error does not fail the run.
    async fn send(&self, signal: &str) {
        let mut url = self.url.clone();
        if !signal.is_empty() {
            let path = format!("{}/{signal}", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        let mut problem = String::new();
        for _ in 0..TRIES {
            let answer = self.client.post(url.clone()).send().await;
            problem = match answer {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => format!("HTTP {}", answer.status().as_u16()),
                Err(error) if error.is_timeout() => {
                    format!("no answer within {} s", TIMEOUT.as_secs())
                }
                // The error's own text contains the URL, which is secret.
                Err(error) if error.is_connect() => "no connection".to_owned(),
                Err(error) => error.without_url().to_string(),
            };
        }
        let host = self.url.host_str().unwrap_or_default();
        warn!(
            host,
            signal, problem, "the ping was not accepted (--ping-url); the run is not affected"
        );
    }
}
