//! `voice-sync daemon`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use axum::Router;
use clap::Args;
use futures_util::future::join3;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::status::Viewer;
use super::{
    Budget, Nudge, Options, UNFINISHED, in_time, interval, open, warn_of_statuses,
    warn_without_events,
};
use crate::cli::{secrets, shutdown};
use crate::core::exit::{Exit, Failed};
use crate::core::verdict::Rules;
use crate::daemon::{
    self, AllowedHosts, DutyCycles, Health, Inbox, Opened, Secret, StatusCache, Supervisor, Tick,
};
use crate::deadline::Deadline;
use crate::status::Limits;
use crate::store::{Access, DatabaseUrl, Names, Store};
use crate::sync::{Pass, Scope};
use crate::telemetry::exposition::Metrics;

/// Look voices up whenever one is due, until stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  voice-sync daemon --listen 9090
  voice-sync daemon --interval 1s --log-format json")]
pub(super) struct Daemon {
    /// The longest pause between two polls: new voices are found within this time.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,

    #[command(flatten)]
    budget: Budget,

    #[command(flatten)]
    nudge: Nudge,

    /// Serve the status page, /livez, /readyz and /metrics at this port of the local host, or at this address and port.
    /// With ELEVENLABS_WEBHOOK_SECRET or VOICE_SYNC_HINTS_TOKEN, also accept POST /webhooks/elevenlabs and POST /hints.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,

    /// Host names by which browsers may open the page, in addition to localhost and addresses.
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "listen")]
    allowed_hosts: Vec<String>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
    let local = port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    local.or_else(|_| text.parse()).map_err(|_| {
        "use a port, such as 9090, or an address and a port, such as 0.0.0.0:9090".to_owned()
    })
}

/// Creates the cache of the status for the page.
fn status_cache(url: DatabaseUrl, names: Names, rules: &Rules, account: Uuid) -> Arc<StatusCache> {
    let viewer = Arc::new(Mutex::new(Viewer {
        url,
        names,
        // The page never creates tables.
        auto_migrate: None,
        fail_after: rules.fail_after,
        age_from: rules.age_from,
        limits: Limits::default(),
        account: Some(account),
        store: None,
    }));
    Arc::new(StatusCache::new(move || {
        let viewer = Arc::clone(&viewer);
        Box::pin(async move {
            let seen = viewer.lock().await.look().await;
            seen.map_err(|failed| failed.to_string())
        })
    }))
}

/// The configured secrets of hints.
struct HintSecrets {
    webhooks: Option<SecretString>,
    token: Option<SecretString>,
}

impl HintSecrets {
    fn read() -> Result<Self, Failed> {
        let (webhooks, token) = secrets::hint_secrets().map_err(Failed::config)?;
        Ok(Self { webhooks, token })
    }

    fn warn_that_nothing_listens(&self) {
        if self.token.is_some() {
            warn!("a secret for hints is set, but there is no --listen: hints are not accepted");
        }
    }

    fn router(self, inbox: &Arc<Inbox>, metrics: &Metrics) -> Router {
        let [webhooks, token] = [self.webhooks, self.token]
            .map(|secret| secret.map(|text| Secret::new(text.expose_secret().as_bytes())));
        daemon::hints_router(webhooks, token, inbox, &metrics.hints)
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failed> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        // Another process, such as the daemon before this one, may soon be gone.
        let exit = match error.kind() == io::ErrorKind::AddrInUse {
            true => Exit::Io,
            false => Exit::Config,
        };
        let message = anyhow!(error).context(format!("cannot listen on {address} (--listen)"));
        Failed::new(exit, message).with_hint("use a free port and an address of this host")
    })?;
    info!(address = %listener.local_addr().unwrap_or(address), "listening");
    Ok(listener)
}

impl Daemon {
    pub(super) async fn run(self, options: Options) -> Result<Exit, Failed> {
        let (url, names, rules) = (options.database_url()?, options.names()?, options.rules());
        let metrics = Arc::new(Metrics::default());
        let provider = options.provider()?.counting_in(metrics.provider.clone());
        let provider = Arc::new(provider);
        let nudger = self.nudge.nudger(true, &metrics.nudges).map(Arc::new);
        metrics.press(provider.pressure());
        let mut without_events = options.publisher()?.is_none() && !options.wants_no_events();
        let (publisher, queue) = (options.publisher()?, options.queue()?);
        let (health, supervisor) = (Arc::new(Health::default()), Supervisor::default());
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let deadline = Deadline::never();
        shutdown::on_signal(stop.clone(), deadline.clone());
        let inbox = Arc::new(Inbox::default());
        let secrets = HintSecrets::read()?;
        let token = secrets::listen_token().map_err(Failed::config)?;
        let token = token.map(|token| Secret::new(token.expose_secret().as_bytes()));
        let serving = match self.listen {
            None => {
                secrets.warn_that_nothing_listens();
                None
            }
            Some(address) => {
                let listener = listen(address).await?;
                if token.is_none() && !address.ip().is_loopback() {
                    warn!(
                        %address,
                        "the status page and the metrics need no password, and other hosts can read them; set \
                         VOICE_SYNC_LISTEN_TOKEN_FILE, or let only trusted hosts connect"
                    );
                }
                let cache = status_cache(url.clone(), names.clone(), &rules, provider.account());
                let hosts = AllowedHosts::new(self.allowed_hosts);
                let router = daemon::router(health.clone(), metrics.clone(), cache, hosts, token)
                    .merge(secrets.router(&inbox, &metrics));
                let serving = daemon::serve(listener, router, stopped.clone());
                Some(tokio::spawn(serving))
            }
        };
        info!(
            event = "daemon_started",
            version = super::LONG_VERSION,
            database = %url,
            provider = %provider.base(),
            event_bus = publisher.as_ref().map_or("none".to_owned(), |bus| format!("Redis at {}", bus.address())),
            interval = %humantime::format_duration(self.interval),
            "voice-sync daemon started"
        );
        let scope = Scope {
            continuous: true,
            ..Scope::default()
        };
        let background = |store: Arc<Store>| {
            let (inbox, metrics) = (Arc::clone(&inbox), metrics.hints.clone());
            let (nudger, provider) = (nudger.clone(), Arc::clone(&provider));
            let health = Arc::clone(&health);
            async move {
                let nudging = async {
                    if let Some(nudger) = nudger {
                        nudger.run(&store, &provider).await;
                    }
                };
                let watching = daemon::watch_database(&store, &health);
                join3(inbox.deliver(&store, &metrics), nudging, watching).await;
            }
        };
        let opening = async || {
            let opening = open(&url, &names, options.auto_migrate, Access::ReadWrite);
            let store = in_time(&url, opening).await?.until(deadline.clone());
            warn_of_statuses(&store, &names.statuses).await;
            let store = Arc::new(store);
            Ok(Opened::new(Arc::clone(&store), background(store)))
        };
        let mut looks = DutyCycles::default();
        let turn = async |store: &_| {
            let pass = Pass {
                store,
                provider: &provider,
                publisher: publisher.as_ref(),
                queue: queue.as_ref(),
                nudger: nudger.as_deref(),
                rules: &rules,
                missing_after: options.missing_after,
                strategy: options.lookup,
                scope: &scope,
                stop: &stop,
                metrics: &metrics.pass,
                observe: &|_| health.moves(),
            };
            let tick = daemon::tick(pass, self.budget.request_budget, &metrics, &mut looks).await;
            // Once for a process: it may complete voices every second.
            if let (Tick::Passed { report, .. }, true) = (&tick, without_events) {
                without_events = !warn_without_events(report);
            }
            tick
        };
        let working = daemon::run(
            opening,
            turn,
            self.interval,
            &inbox,
            &stop,
            &health,
            &supervisor,
        );
        let stopping = async {
            stop.cancelled().await;
            supervisor.stopping();
            deadline.passed().await;
        };
        let served = async {
            match serving {
                None => std::future::pending().await,
                Some(serving) => serving.await,
            }
        };
        let ended = tokio::select! {
            // Checked in this order. An idle daemon ends at once when it is stopped.
            biased;
            () = stopping => Err(Failed::new(Exit::Temporary, anyhow!(UNFINISHED))),
            ended = working => ended,
            // Without the server, probes could no longer check the daemon.
            ended = served => {
                let message = anyhow!("the server on --listen ended: {ended:?}");
                Err(Failed::new(Exit::Io, message).with_hint("start the daemon again"))
            }
            () = supervisor.watchdog(&health) => Ok(()),
        };
        // Do not wait for clients that keep their connection open.
        stopped.cancel();
        ended?;
        info!("stopped");
        Ok(Exit::Success)
    }
}
