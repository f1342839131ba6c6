//! The commit and the target of a build, which `voice-sync --version` shows.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the program is made of. Other changes do not make a build differ from its commit.
const SOURCES: [&str; 5] = ["Cargo.lock", "Cargo.toml", "build.rs", "migrations", "src"];
const LENGTH: usize = 10;

fn main() {
    println!("cargo::rerun-if-env-changed=VOICE_SYNC_COMMIT");
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    // A build without a clone and without an archive's file, such as that of the image, sets the variable.
    let given = env::var("VOICE_SYNC_COMMIT").ok();
    let commit = given
        .filter(|commit| !commit.is_empty())
        .or_else(of_clone)
        .or_else(of_archive)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=VOICE_SYNC_COMMIT={commit}");
    let target = env::var("TARGET").expect("Cargo sets it");
    println!("cargo::rustc-env=VOICE_SYNC_TARGET={target}");
}

/// The commit that is checked out, with a mark if the sources differ from it.
fn of_clone() -> Option<String> {
    // A source archive may lie in a folder of some other repository.
    let here = env::var("CARGO_MANIFEST_DIR").ok()?;
    if fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?
        != fs::canonicalize(here).ok()?
    {
        return None;
    }
    // The log has a new line after each commit and checkout. Without a log, these change instead.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let files = ["HEAD", "logs/HEAD", "packed-refs"];
    for name in files.into_iter().chain(branch.as_deref()) {
        // Cargo would build each time if a file were missing.
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let mut commit = git(&["rev-parse", "HEAD"])?;
    commit.truncate(LENGTH);
    let changes = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    if !changes.is_empty() {
        commit.push_str("-dirty");
    }
    Some(commit)
}

/// `git archive`, and so a download from a Git server, puts the commit into the file.
fn of_archive() -> Option<String> {
    let commit = fs::read_to_string(".git-archive-commit").ok()?;
    println!("cargo::rerun-if-changed=.git-archive-commit");
    let commit = commit.trim();
    let is_commit = commit.len() >= LENGTH && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| commit[..LENGTH].to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    // `git status` must not write to the index, which another command may be using.
    let output = Command::new("git")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    output.status.success().then_some(text)
}
