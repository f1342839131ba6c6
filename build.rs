//! The commit and the target of a build, which `voice-sync --version` shows.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=VOICE_SYNC_COMMIT");
    // A file that is not there would cause a build each time.
    let head = fs::read_to_string(".git/HEAD").unwrap_or_default();
    let branch = head
        .trim()
        .strip_prefix("ref: ")
        .map(|name| format!(".git/{name}"));
    for file in [Some(".git/HEAD".to_owned()), branch].into_iter().flatten() {
        if Path::new(&file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    // Builds without a clone, such as those of a package, set the variable.
    let commit = env::var("VOICE_SYNC_COMMIT").ok().or_else(commit);
    println!(
        "cargo::rustc-env=VOICE_SYNC_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
    let target = env::var("TARGET").expect("Cargo sets it");
    println!("cargo::rustc-env=VOICE_SYNC_TARGET={target}");
}

fn commit() -> Option<String> {
    let git = Command::new("git")
        .args(["rev-parse", "--short=10", "HEAD"])
        .output()
        .ok()?;
    let commit = String::from_utf8(git.stdout).ok()?.trim().to_owned();
    (git.status.success() && !commit.is_empty()).then_some(commit)
}
