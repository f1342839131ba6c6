//! The binary. Everything else is in the library.

use std::process::ExitCode;

use tracing::error;
use voice_sync::cli::Cli;
use voice_sync::core::exit::Exit;
use voice_sync::telemetry::logs;
use voice_sync::tls;

fn main() -> ExitCode {
    keep_secrets_out_of_core_files();
    tls::install();
    let cli = Cli::read();
    logs::init(&cli.log());
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(cause) => {
            error!("the runtime cannot start: {cause}");
            return Exit::Io.into();
        }
    };
    runtime.block_on(cli.run())
}

/// The process memory contains a key and passwords. A crash must not write them to disk.
fn keep_secrets_out_of_core_files() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // If the kernel refuses, there is no alternative.
        let _refused = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}
