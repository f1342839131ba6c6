//! The reference of error messages, made from the messages in the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use voice_sync::core::exit::Exit;
use voice_sync::core::missing::MassAbsenceGuard;
use voice_sync::core::report::StopReason;
use voice_sync::store::StoreError;

const INTRODUCTION: &str = "\
# Error messages

The messages with which a command can end, by exit code, and the hint that follows if there is no
better one. `…` is a value. A message may be the end of a longer one, which names what it is about.
Messages about the command line itself, such as \"unexpected argument\", are not listed: they are 2.
This page is generated: `UPDATE=1 scripts/test --test it reference_of_error_messages`.
See also: [exit codes](exit-codes.md), and [what to do](../how-to/alerts.md#by-exit-code).
";

const TITLES: [(Exit, &str); 7] = [
    (Exit::Declined, "not confirmed"),
    (Exit::Usage, "wrong usage"),
    (Exit::Database, "the database could not be reached"),
    (Exit::Io, "local input or output failed"),
    (Exit::Temporary, "temporary"),
    (Exit::Key, "the key"),
    (Exit::Config, "configuration, schema or privilege"),
];

/// The exit code of the errors of an enum or a struct. `None`: it never ends a command.
fn exit_of(name: &str, variant: &str) -> Option<Exit> {
    let text = String::new;
    match name {
        "StoreError" => Some(
            match variant {
                "Unreachable" => StoreError::Unreachable(text()),
                "Contended" => StoreError::Contended(text()),
                "Refused" => StoreError::Refused(text()),
                "Io" => StoreError::Io(text()),
                "Config" => StoreError::Config(text()),
                "NoSuchTable" => StoreError::NoSuchTable(text()),
                "Privilege" => StoreError::Privilege(text()),
                variant => panic!("StoreError::{variant} is new: which exit code has it?"),
            }
            .exit(),
        ),
        "SchemaError" | "UnusableKey" => Some(Exit::Config),
        "InvalidName"
        | "InvalidZone"
        | "InvalidBaseUrl"
        | "InvalidRedisUrl"
        | "InvalidDatabaseUrl"
        | "InvalidRequestBudget" => Some(Exit::Usage),
        // About one request, one voice or one webhook.
        "ProviderError" | "Unavailable" | "InvalidProviderId" | "Unstorable" | "SetAside"
        | "InvalidSignature" => None,
        // It has no message of its own.
        "Failed" => None,
        name => panic!("{name} is new: with which exit code does it end a command?"),
    }
}

/// A string literal at the start, without its quotes and with its escapes replaced.
fn literal(source: &str) -> Option<String> {
    let mut characters = source.trim_start().strip_prefix('"')?.chars().peekable();
    let mut text = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                '\n' => while characters.next_if(|c| c.is_whitespace()).is_some() {},
                escaped => text.push(escaped),
            },
            c => text.push(c),
        }
    }
}

/// A message with `…` in place of its values.
fn template(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((_, behind)) = after.split_once('}') else {
            break;
        };
        shown.push_str(before);
        shown.push('…');
        rest = behind;
    }
    shown + rest
}

/// The word after one of these, at the start of a line.
fn name_after<'a>(line: &'a str, words: &[&str]) -> Option<&'a str> {
    let line = line.trim_start().trim_start_matches("pub(super) ");
    let line = line
        .trim_start_matches("pub(crate) ")
        .trim_start_matches("pub ");
    let rest = words.iter().find_map(|word| line.strip_prefix(word))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

/// The messages of derived errors, with the name of their variant or struct.
fn derived(source: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("#[error(") {
        let Some(text) = literal(&source[at + "#[error(".len()..]) else {
            continue;
        };
        let is_attribute = |line: &&str| {
            let line = line.trim_start();
            line.starts_with(|c: char| c.is_alphabetic()) && !line.starts_with("max =")
        };
        let end = source[at..]
            .find("\n)]\n")
            .into_iter()
            .chain(source[at..].find(")]\n"));
        let behind = &source[at + end.min().expect("an end")..];
        let item = behind.lines().skip(1).find(is_attribute).expect("an item");
        let is_struct = name_after(item, &["struct ", "enum "]);
        let before = source[..at].lines().rev();
        let owner = is_struct.or_else(|| {
            before
                .clone()
                .find_map(|line| name_after(line, &["enum "]).filter(|_| line.starts_with("pub")))
        });
        let variant = name_after(item, &[""]).expect("a name").to_owned();
        found.push((owner.expect("an enum").to_owned(), variant, text));
    }
    found
}

/// The messages that a command makes itself, each with its exit code.
fn made(file: &str, source: &str) -> Vec<(Exit, String)> {
    let source = source.split("#[cfg(test)]").next().expect("a part");
    let mut found = Vec::new();
    for marker in [
        ".context(format!(",
        "anyhow!(",
        "bail!(",
        ".context(",
        "with_context(|| format!(",
    ] {
        for (at, _) in source.match_indices(marker) {
            let Some(text) = literal(&source[at + marker.len()..]) else {
                continue;
            };
            // `let message = anyhow!(…);` is used by the next statement.
            let message = source[..at].ends_with("let message = ");
            let (start, statements) = match message {
                true => (at, 2),
                false => (source[..at].rfind(";\n").map_or(0, |end| end + 1), 1),
            };
            let statement = &source[start..];
            let end = statement.match_indices(";\n").nth(statements - 1);
            let statement = &statement[..end.map_or(statement.len(), |(end, _)| end)];
            let named = [
                ("Failed::config", Exit::Config),
                ("Failed::usage", Exit::Usage),
                ("Exit::Declined", Exit::Declined),
                ("Exit::Database", Exit::Database),
                ("Exit::Io", Exit::Io),
                ("Exit::Temporary", Exit::Temporary),
            ];
            let (before, after) = statement.split_at(at - start);
            let nearest = named
                .iter()
                .filter_map(|(word, exit)| before.rfind(word).map(|place| (place, *exit)))
                .max_by_key(|(place, _)| *place)
                .map(|(_, exit)| exit);
            let nearest = nearest.or_else(|| {
                named
                    .iter()
                    .filter_map(|(word, exit)| after.find(word).map(|place| (place, *exit)))
                    .min_by_key(|(place, _)| *place)
                    .map(|(_, exit)| exit)
            });
            let exit = nearest.unwrap_or_else(|| match file {
                "src/cli/config_file.rs" | "src/cli/ping.rs" | "src/cli/options.rs" => Exit::Usage,
                "src/cli/secrets.rs" | "src/cli/open.rs" | "src/cli/daemon.rs" => Exit::Config,
                "src/cli/output.rs" => Exit::Io,
                file => panic!("{file}: with which exit code does {text:?} end a command?"),
            });
            found.push((exit, text));
        }
    }
    for (marker, exit) in [
        ("const UNFINISHED: &str = ", Exit::Temporary),
        ("const UNUSABLE_REDIS: &str = ", Exit::Usage),
    ] {
        let texts = source.split(marker).skip(1).filter_map(literal);
        found.extend(texts.map(|text| (exit, text)));
    }
    found
}

fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => sources(&path, found),
            false => {
                let source = fs::read_to_string(&path).expect("a source");
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let name = path.strip_prefix(root).expect("below the root");
                found.insert(name.display().to_string(), source);
            }
        }
    }
}

/// Why a pass ends early, with its exit code. `match` makes each new reason show up here.
fn stop_reasons() -> Vec<(Exit, String)> {
    let values = || "…".to_owned();
    let all = [
        StopReason::KeyRefused(values()),
        StopReason::OtherWorkspace(MassAbsenceGuard::default()),
        StopReason::ProviderDown,
        StopReason::TimeOver,
        StopReason::Stopped,
        StopReason::ChangesRefused(Exit::Config, values()),
    ];
    all.into_iter()
        .map(|reason| {
            let exit = match &reason {
                StopReason::KeyRefused(_) | StopReason::OtherWorkspace(_) => Exit::Key,
                StopReason::ProviderDown | StopReason::TimeOver | StopReason::Stopped => {
                    Exit::Temporary
                }
                StopReason::Database(exit, _) | StopReason::ChangesRefused(exit, _) => *exit,
            };
            (exit, reason.to_string().replace("0 of 0", "… of …"))
        })
        .collect()
}

fn page() -> String {
    let mut messages: BTreeMap<Exit, BTreeSet<String>> = BTreeMap::new();
    let mut add = |exit, text: &str| {
        let text = template(text);
        // The rest of a message that is one word, or only a value, is listed by itself.
        if text.contains(' ') {
            messages.entry(exit).or_default().insert(text);
        }
    };
    let mut all = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    for (file, source) in &all {
        for (name, variant, text) in derived(source) {
            if let Some(exit) = exit_of(&name, &variant) {
                add(exit, &text);
            }
        }
        if file.starts_with("src/cli/") {
            for (exit, text) in made(file, source) {
                add(exit, &text);
            }
        }
    }
    for (exit, text) in stop_reasons() {
        add(exit, &text);
    }
    let mut page = INTRODUCTION.to_owned();
    for (exit, title) in TITLES {
        page.push_str(&format!("\n## {}: {title}\n\n", exit.code()));
        if let Some(hint) = exit.hint() {
            page.push_str(&format!("| hint: {hint} |\n|---|\n"));
        } else {
            page.push_str("| message |\n|---|\n");
        }
        for text in messages.remove(&exit).unwrap_or_default() {
            page.push_str(&format!("| {} |\n", text.replace('|', "\\|")));
        }
    }
    assert!(messages.is_empty(), "{messages:?} has no title");
    page
}

#[test]
fn the_reference_of_error_messages_is_up_to_date() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/reference/error-messages.md"
    );
    let page = page();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, &page).expect("writes");
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        written, page,
        "run UPDATE=1 scripts/test --test it reference_of_error_messages"
    );
}
