//! The ElevenLabs simulator on the command line: `cargo run --release --example simulator`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{CommandFactory, FromArgMatches, Parser};
use voice_sync_simulator::{ErrorFormat, Fate, Options, Outage, Simulator};

/// Simulates the part of the ElevenLabs voices API that voice-sync uses.
#[derive(Parser)]
#[command(name = "simulator")]
struct Arguments {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8900")]
    listen: SocketAddr,

    /// The xi-api-key to accept [default: any that is not empty]
    #[arg(long)]
    key: Option<String>,

    /// How long every answer takes
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = humantime::parse_duration)]
    latency: Duration,

    /// How much longer an answer may take
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    jitter: Duration,

    /// The share of requests, 0 to 1, that fails with a 5xx
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    error_rate: f64,

    /// Requests a second; beyond it, 429 system_busy
    #[arg(long, value_name = "NUMBER")]
    rate_limit: Option<u32>,

    /// Requests at once; beyond it, 429 concurrent_limit_exceeded
    #[arg(long, value_name = "NUMBER")]
    max_concurrent: Option<u32>,

    /// When to answer 503 to everything, as in 10s+5s; can be given more than once
    #[arg(long = "outage", value_name = "START+LENGTH")]
    outages: Vec<Outage>,

    /// Answer 404 to GET /v2/voices, as gateways without it do
    #[arg(long)]
    no_list: bool,

    /// Which form the bodies of errors have: legacy, current or both
    #[arg(long, value_name = "FORMAT", default_value = "both")]
    errors: ErrorFormat,

    /// How many premade voices page 0 of the list holds unasked
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    default_voices: usize,

    /// Voices to start with: a JSON list of {"voice_id", "name", "fate" (optional)}
    #[arg(long, value_name = "FILE")]
    seed_file: Option<PathBuf>,

    /// Where the randomness of ids, jitter and errors starts
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

/// What `--help` ends with.
fn fates() -> String {
    let mut text = "A voice's fate is told by its name, as in \"Anna [ready 5s]\", by the seed file's \
                    \"fate\",\nor by a synthetic id, sim-<fate><time>-<anything>, that exists from the \
                    start without being\nadded. The time to its fulfilment is counted from the voice's \
                    creation and zero if left out.\nA voice that tells none is ready. Fates:\n"
        .to_owned();
    for fate in Fate::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:<17} {}", fate.word(), fate.meaning());
    }
    text + "\nThe list's filters and its sorting are accepted and passed over.\n\nExample:\n  \
            simulator --latency 80ms --jitter 40ms --max-concurrent 10 --outage 30s+10s &\n  \
            curl -H 'xi-api-key: any' 'http://127.0.0.1:8900/v2/voices?voice_ids=sim-pvcready1m-1'"
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Arguments::command().after_help(fates());
    let arguments = Arguments::from_arg_matches(&command.get_matches())?;
    ensure!(
        (0.0..=1.0).contains(&arguments.error_rate),
        "--error-rate is a share between 0 and 1"
    );
    let options = Options {
        key: arguments.key,
        latency: arguments.latency,
        jitter: arguments.jitter,
        error_rate: arguments.error_rate,
        rate_limit: arguments.rate_limit,
        max_concurrent: arguments.max_concurrent,
        outages: arguments.outages,
        default_voices: arguments.default_voices,
        list_enabled: !arguments.no_list,
        errors: arguments.errors,
        record_requests: false,
        seed: arguments.seed,
    };

    // Before anybody can know that it listens, so that no signal finds it unprepared.
    let stopped = stop_signal()?;
    let simulator = Simulator::start(arguments.listen, options)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    if let Some(file) = arguments.seed_file {
        let json = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        simulator
            .load_seed(&json)
            .with_context(|| format!("cannot take {}", file.display()))?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", simulator.url())?;
    stdout.flush()?;

    stopped.await;
    simulator.stop().await;
    Ok(())
}

/// Resolves on ctrl-c or SIGTERM.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
