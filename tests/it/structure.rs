//! What `docs/explanation/architecture.md` says of the structure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that a file names, by their first part.
fn imports(source: &str) -> impl Iterator<Item = &str> {
    source.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files
}

/// Each folder of `src`, with what its files import.
fn folders() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for path in files(&src) {
        let below = path.strip_prefix(&src).expect("below src");
        let folder = below.iter().next().expect("a part").to_string_lossy();
        let source = fs::read_to_string(&path).expect("a source");
        for import in imports(&source) {
            let imports = folders.entry(folder.to_string()).or_default();
            imports.push((path.clone(), import.to_owned()));
        }
    }
    folders
}

#[test]
fn core_imports_nothing_from_outside_core() {
    for (path, import) in &folders()["core"] {
        assert_eq!(import, "core", "{}", path.display());
    }
}

#[test]
fn only_sync_cli_and_doctor_import_both_store_and_provider() {
    for (folder, imports) in folders() {
        let sees = |module: &str| imports.iter().any(|(_, import)| import == module);
        let sees_both = sees("store") && (sees("provider") || folder == "provider");
        let may = ["sync", "cli", "doctor"].contains(&folder.as_str());
        assert!(may || !sees_both, "{folder} sees both");
        assert!(
            folder != "store" || !sees("provider"),
            "store sees provider"
        );
    }
}

/// The names of events in the log, in the code and in the documentation.
#[test]
fn every_event_of_the_log_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = BTreeSet::new();
    for path in files(&root.join("src")) {
        let source = fs::read_to_string(&path).expect("a source");
        let events = source.split("event = \"").skip(1);
        named.extend(events.filter_map(|rest| rest.split('"').next().map(ToOwned::to_owned)));
        // The two of transitions are chosen by the verdict.
        let chosen = ["voice_completed", "voice_failed"].into_iter();
        let chosen = chosen.filter(|name| source.contains(&format!("(\"{name}\"")));
        named.extend(chosen.map(ToOwned::to_owned));
    }
    let page = fs::read_to_string(root.join("docs/reference/configuration.md")).expect("a page");
    let (_, table) = page
        .split_once("| event | meaning | fields |")
        .expect("a table");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let first = rows.filter_map(|row| row.split('|').nth(1));
    let documented: BTreeSet<_> = first
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(ToOwned::to_owned)
        .collect();
    assert_eq!(named, documented);
}
