//! What `docs/explanation/architecture.md` says of the structure.

use std::collections::BTreeMap;
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
