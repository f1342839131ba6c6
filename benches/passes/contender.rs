//! Who is measured: voice-sync, and the same job in Python.

use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use wait4::Wait4;

use crate::site::Site;

const BINARY: &str = env!("CARGO_BIN_EXE_voice-sync");
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// How voices are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    Batch,
    Single,
}

impl Lookup {
    fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Single => "single",
        }
    }
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program that makes one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// voice-sync, of this build.
    VoiceSync(Lookup),
    /// asyncio, with leases and an outbox.
    Asyncio(Lookup),
    /// asyncio, without leases.
    Plain(Lookup),
    /// One voice after the other.
    Sequential,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VoiceSync(lookup) => write!(f, "voice-sync, {lookup}"),
            Self::Asyncio(lookup) => write!(f, "asyncio with leases, {lookup}"),
            Self::Plain(lookup) => write!(f, "asyncio without leases, {lookup}"),
            Self::Sequential => f.write_str("one voice after the other"),
        }
    }
}

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// The whole process, from its start to its end.
    pub(crate) wall: Duration,
    /// Of the process, in user and kernel mode.
    pub(crate) cpu: Duration,
    /// The most memory that it had resident, in KiB.
    pub(crate) peak: u64,
}

/// How often a running process is asked for its peak, which goes with it.
const PEAK_EVERY: Duration = Duration::from_millis(5);

impl Contender {
    fn command(self, concurrency: u64) -> anyhow::Result<Command> {
        let mut command = match self {
            Self::VoiceSync(_) => Command::new(BINARY),
            Self::Asyncio(_) | Self::Plain(_) | Self::Sequential => {
                let python = std::env::var("VOICE_SYNC_BENCH_PYTHON")
                    .context("there is no Python with the peers' packages; run: scripts/bench")?;
                Command::new(python)
            }
        };
        let concurrency = concurrency.to_string();
        match self {
            Self::VoiceSync(lookup) => command
                .args(["sync-once", "--lookup", lookup.name()])
                .args(["--concurrency", &concurrency]),
            Self::Asyncio(lookup) => command.arg(format!("{PEERS}/peer.py")).args([
                "--lookup",
                lookup.name(),
                "--concurrency",
                &concurrency,
            ]),
            Self::Plain(lookup) => command
                .arg(format!("{PEERS}/peer.py"))
                .args(["--lookup", lookup.name(), "--concurrency", &concurrency])
                .args(["--bookkeeping", "none"]),
            Self::Sequential => command.arg(format!("{PEERS}/sequential.py")),
        };
        Ok(command)
    }

    /// The command that makes a pass at this site.
    pub(crate) fn prepared(self, site: &Site, concurrency: u64) -> anyhow::Result<Command> {
        let mut command = self.command(concurrency)?;
        surround(&mut command, site)?;
        Ok(command)
    }

    /// Runs it once.
    pub(crate) async fn run(self, site: &Site, concurrency: u64) -> anyhow::Result<Usage> {
        measure(self.prepared(site, concurrency)?).await
    }
}

/// The command of a daemon at this site.
pub(crate) fn daemon(site: &Site) -> anyhow::Result<Command> {
    let mut command = Command::new(BINARY);
    command.arg("daemon");
    surround(&mut command, site)?;
    Ok(command)
}

/// Makes voice-sync's own tables.
pub(crate) async fn migrate(site: &Site) -> anyhow::Result<()> {
    let mut command = Command::new(BINARY);
    command.arg("migrate");
    surround(&mut command, site)?;
    measure(command).await.map(drop)
}

fn surround(command: &mut Command, site: &Site) -> anyhow::Result<()> {
    let redis = std::env::var("VOICE_SYNC_TEST_REDIS_URL")
        .context("there is no Redis; run: scripts/bench passes")?;
    command
        .env_clear()
        .env("DATABASE_URL", &site.database_url)
        .env("ELEVENLABS_BASE_URL", site.provider.url())
        .env("ELEVENLABS_API_KEY", "any")
        .env("REDIS_URL", redis)
        .env("VOICE_SYNC_EVENT_PREFIX", &site.streams);
    Ok(())
}

/// Runs a command to its end, which has to be a good one.
async fn measure(mut command: Command) -> anyhow::Result<Usage> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let run = move || {
        let began = Instant::now();
        let child = command.spawn()?;
        let (is_over, over) = mpsc::channel::<()>();
        let id = child.id();
        let peak = thread::spawn(move || {
            let mut peak = 0;
            while over.recv_timeout(PEAK_EVERY) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(resident_peak(id).unwrap_or(0));
            }
            peak
        });
        let ended = child.wait4()?;
        let wall = began.elapsed();
        drop(is_over);
        let peak = peak
            .join()
            .map_err(|_| anyhow::anyhow!("the peak's watcher panicked"))?;
        ensure!(
            ended.status.success(),
            "{command:?} ended with {}",
            ended.status
        );
        Ok(Usage {
            wall,
            cpu: ended.rusage.utime + ended.rusage.stime,
            peak,
        })
    };
    tokio::task::spawn_blocking(run).await?
}

/// As proc_pid_status(5) tells it. What wait4(2) tells begins with the memory of whoever started the
/// process.
fn resident_peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
