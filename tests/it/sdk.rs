//! The simulator, as the provider's official Python SDK sees it.

use std::process::Command;

use voice_sync_simulator::{ErrorFormat, Options};

use crate::support::fates::simulator_with;
use crate::support::from_scripts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_sdk_can_list_get_add_and_delete_voices() {
    for errors in [ErrorFormat::Legacy, ErrorFormat::Current, ErrorFormat::Both] {
        the_official_sdk_works(errors).await;
    }
}

async fn the_official_sdk_works(errors: ErrorFormat) {
    let provider = simulator_with(Options {
        key: Some("right".into()),
        errors,
        ..Options::default()
    })
    .await;
    let url = provider.url();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(from_scripts("VOICE_SYNC_TEST_PYTHON"))
            .args([
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/sdk.py"),
                &url,
                "right",
            ])
            .output()
            .expect("python runs")
    })
    .await
    .expect("joins");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.ends_with("sdk ok\n"), "{said}");
}
