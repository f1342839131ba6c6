//! The status as text, for a terminal or a pipe.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use chrono::{DateTime, Utc};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

use super::{Breaker, Budget, Status};
use crate::core::backlog::{BAND_WORDS, BacklogKind};
use crate::core::format::{ago, in_line, moment, number_of, span};
use crate::core::quantiles::Quantiles;
use crate::core::schedule;
use crate::store::{Account, LedgerEntry, VoiceRecord};

pub(crate) const HEADING: Style = Style::new().bold();
const ALARM: Style = AnsiColor::Yellow.on_default().bold();
const WELL: Style = AnsiColor::Green.on_default();
const FAINT: Style = Style::new().dimmed();

/// The longest bar of a histogram, in characters.
const LONGEST_BAR: u64 = 30;

/// The status as text, at most `width` columns wide where possible. It contains colours; the caller removes them if
/// they are not wanted.
pub fn text(status: &Status, width: u16) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _never = write(&mut out, status, width);
    out
}

fn write(out: &mut String, status: &Status, width: u16) -> std::fmt::Result {
    let Status { survey, attention } = status;
    let processing = survey.backlog.all();
    writeln!(
        out,
        "{HEADING}{} in processing{HEADING:#} {FAINT}at {} UTC{FAINT:#}",
        number_of(processing, "voice", "voices"),
        moment(survey.read_at)
    )?;
    match attention.is_empty() {
        true => writeln!(out, "{WELL}nothing needs attention{WELL:#}")?,
        false => {
            for item in attention {
                writeln!(out, "{ALARM}! {}{ALARM:#}\n  → {}", item.says, item.advice)?;
            }
        }
    }
    if processing > 0 {
        writeln!(out, "\n{HEADING}Backlog{HEADING:#}")?;
        let kinds = BacklogKind::ALL.map(|kind| (kind.words(), survey.backlog.of(kind)));
        histogram(out, &kinds, width)?;
        writeln!(out, "\n{HEADING}Age{HEADING:#}")?;
        let bands: Vec<_> = BAND_WORDS
            .into_iter()
            .zip(survey.backlog.by_age())
            .collect();
        histogram(out, &bands, width)?;
        writeln!(out, "\n{HEADING}Oldest voices{HEADING:#}")?;
        writeln!(out, "{}", oldest(status, width).trim_fmt())?;
    }
    writeln!(out, "\n{HEADING}Last passes{HEADING:#}")?;
    match survey.runs.is_empty() {
        true => writeln!(out, "  none")?,
        false => writeln!(out, "{}", runs(&survey.runs, width).trim_fmt())?,
    }
    writeln!(out, "\n{HEADING}Provider{HEADING:#}")?;
    for account in &survey.accounts {
        writeln!(out, "  {}", provider(account, status))?;
        if let Some(budget) = budget(account, status) {
            writeln!(out, "  {budget}")?;
        }
    }
    if survey.accounts.is_empty() {
        writeln!(out, "  no request yet")?;
    }
    writeln!(out, "\n{HEADING}Outbox{HEADING:#}\n  {}", outbox(status))?;
    writeln!(
        out,
        "\n{HEADING}From clone to completed{HEADING:#}\n  {}",
        times(&survey.completion_times)
    )?;
    for kind in times_of_kinds(status) {
        writeln!(out, "  {kind}")?;
    }
    Ok(())
}

/// One line per entry, with a bar in proportion to the largest number.
fn histogram(out: &mut String, lines: &[(&str, u64)], width: u16) -> std::fmt::Result {
    let name = lines
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let most = lines.iter().map(|(_, number)| *number).max().unwrap_or(0);
    let digits = most.to_string().len();
    let room = u64::from(width).saturating_sub((name + digits) as u64 + 6);
    let longest = room.clamp(1, LONGEST_BAR);
    for (label, number) in lines {
        let length = (u128::from(*number) * u128::from(longest)).div_ceil(u128::from(most.max(1)));
        let bar = "█".repeat(usize::try_from(length).unwrap_or(0));
        let line = format!("  {label:<name$}  {number:>digits$}  {bar}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A table without lines, at most as wide as the terminal. The first column contains ids to copy and is never
/// wrapped.
pub(crate) fn table<const N: usize>(header: [&str; N], width: u16) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(header)
        .set_constraints([ColumnConstraint::ContentWidth]);
    table
}

fn oldest(status: &Status, width: u16) -> Table {
    let mut table = table(["voice", "age", "last lookup", "waits for"], width);
    for voice in &status.survey.oldest {
        let notes = voice.notes.as_ref();
        let asked = notes.and_then(|notes| notes.last_asked);
        table.add_row([
            in_line(&voice.voice_id),
            voice.age.map(span).unwrap_or_default(),
            asked.map_or("never".to_owned(), |at| ago(at, status.survey.read_at)),
            waits_for(voice, status.survey.read_at),
        ]);
    }
    table
}

/// Why a voice is in processing, as far as known.
pub(super) fn waits_for(voice: &VoiceRecord, now: DateTime<Utc>) -> String {
    let Some(notes) = voice.notes_about_it() else {
        return "its first lookup".to_owned();
    };
    let error = notes.last_error.as_deref().map(in_line);
    if let Some(until) = voice.set_aside_until(now) {
        let error = error.unwrap_or_default();
        return format!("set aside, next lookup {}: {error}", ago(until, now));
    }
    if let Some((times, _)) = voice.unanswered() {
        let error = error.unwrap_or_default();
        let times = number_of(times.into(), "failed lookup", "failed lookups");
        return format!("unanswerable, {times}: {error}");
    }
    let stage = notes.stage.as_deref().map(|stage| stage.replace('_', " "));
    let kind = notes.kind.as_deref().unwrap_or("voice");
    let waits = match (notes.missing_count, stage) {
        (_, _) if notes.strikes > 0 => "another attempt".to_owned(),
        (missing @ 1.., _) => {
            let times = number_of(missing.into(), "time", "times");
            format!("confirmation that it is missing (not found {times})")
        }
        (0, Some(stage)) => format!("{stage} ({})", in_line(kind)),
        (0, None) => "its first answer".to_owned(),
    };
    match error {
        Some(error) => format!("{waits}; {error}"),
        None => waits,
    }
}

/// Passes and commands, newest first.
pub(crate) fn runs(entries: &[LedgerEntry], width: u16) -> Table {
    let mut table = table(["started (UTC)", "took", "exit", "what it did"], width);
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for entry in entries {
        let (started, took) = (moment(entry.started_at), span(entry.duration));
        table.add_row([started, took, entry.exit_code.to_string(), did(entry)]);
    }
    table
}

/// What a pass or a command did, in one line. Zero counts are left out.
pub(super) fn did(entry: &LedgerEntry) -> String {
    let counted = |names: &[(&str, &str)]| {
        let counts = names
            .iter()
            .map(|(name, words)| (entry.count(name), *words));
        let parts: Vec<_> = counts
            .filter(|(count, _)| *count > 0)
            .map(|(count, words)| format!("{count} {words}"))
            .collect();
        parts.join(", ")
    };
    let pass = || {
        let voices = counted(&[
            ("completed", "completed"),
            ("failed", "failed"),
            ("processing", "processing"),
            ("missing", "missing"),
            ("set_aside", "set aside"),
            ("superseded", "superseded"),
            ("leased_elsewhere", "leased elsewhere"),
            ("locked", "locked by the application"),
            ("unanswerable", "unanswerable"),
        ]);
        let known = entry.count("locked") + entry.count("unanswerable");
        let others = match entry.count("unavailable").saturating_sub(known) {
            0 => String::new(),
            others if voices.is_empty() => format!("{others} not checked"),
            others => format!(", {others} not checked"),
        };
        let requests = number_of(entry.count("requests"), "request", "requests");
        format!("{} due: {voices}{others}; {requests}", entry.count("due"))
    };
    match &entry.command {
        None if entry.count("due") == 0 => "nothing was due".to_owned(),
        None => pass(),
        Some(command) if entry.count("due") > 0 => format!("{}: {}", in_line(command), pass()),
        Some(command) => {
            let did = counted(&[
                ("put_back", "put back to processing"),
                ("released", "no longer set aside"),
                ("failed", "failed"),
                ("resent", "to be published again"),
                ("recorded", "recorded"),
                ("purged", "removed"),
            ]);
            match did.is_empty() {
                true => format!("{}: nothing was due", in_line(command)),
                false => format!("{}: {did}", in_line(command)),
            }
        }
    }
}

pub(super) fn provider(account: &Account, status: &Status) -> String {
    let state = &account.state;
    let mut says = match Breaker::of(account) {
        Breaker::Closed => "circuit breaker closed".to_owned(),
        Breaker::Open => format!("circuit breaker open for another {}", span(state.open_for)),
        Breaker::HalfOpen => "circuit breaker half-open: the next pass sends a probe".to_owned(),
    };
    if !state.cooldown.is_zero() {
        says.push_str(&format!("; cooldown for another {}", span(state.cooldown)));
    }
    if let Some(limit) = state.concurrency {
        says.push_str(&format!("; concurrency limit {limit:.1}"));
    }
    match account.found_at {
        Some(at) => says.push_str(&format!(
            "; last voice found {}",
            ago(at, status.survey.read_at)
        )),
        None => says.push_str("; no voice found yet"),
    }
    let nudging = &account.nudging;
    if nudging.today > 0 {
        says.push_str(&format!(
            "; {} nudged within a day, {}",
            number_of(nudging.today, "preview", "previews"),
            number_of(nudging.characters, "character", "characters")
        ));
    }
    if !account.unlisted.is_empty() {
        says.push_str(&format!(
            "; its list does not return these kinds of voices: {}",
            in_line(&account.unlisted.join(", "))
        ));
    }
    says
}

pub(super) fn outbox(status: &Status) -> String {
    let survey = &status.survey;
    let mut says = match survey.oldest_event {
        None => "no event waits".to_owned(),
        Some(age) => format!(
            "{}, the oldest for {}",
            number_of(survey.pending_events, "event waits", "events wait"),
            span(age)
        ),
    };
    for bus in &survey.failing_buses {
        let failures = number_of(bus.failures.into(), "time", "times");
        says.push_str(&format!(
            "; the event bus failed {failures} in a row, next attempt in {}",
            span(bus.backing_off_for)
        ));
    }
    says
}

/// How the request budget compares with the backlog; `None` if no pass had one.
pub(super) fn budget(account: &Account, status: &Status) -> Option<String> {
    let Budget {
        budget,
        voices_a_request,
        round,
        enough,
    } = status.budget(account)?;
    let room = number_of(voices_a_request, "voice", "voices");
    let says = format!("request budget {budget}, {room} per request");
    let voices = status.survey.backlog.all();
    Some(match round <= schedule::LONGEST {
        true => format!(
            "{says}: enough to look up each voice in processing every {}",
            span(schedule::LONGEST)
        ),
        false => format!(
            "{says}: looking up each of {} takes {}; for {}, --request-budget {enough}/min is enough",
            number_of(voices, "voice", "voices"),
            span(round),
            span(schedule::LONGEST)
        ),
    })
}

/// The completion times of each kind, from which the daemon learns.
pub(super) fn times_of_kinds(status: &Status) -> Vec<String> {
    let kinds = status.survey.completion_times_by_kind.iter();
    let lines = kinds.map(|(kind, of_kind)| format!("{}: {}", in_line(kind), quantiles(of_kind)));
    lines.collect()
}

fn times(times: &Quantiles) -> String {
    match times.count() {
        0 => "no voice was completed in the recorded passes".to_owned(),
        _ => format!("{} in the recorded passes", quantiles(times)),
    }
}

fn quantiles(times: &Quantiles) -> String {
    let quantile = |part| times.quantile(part).map(span).unwrap_or_default();
    format!(
        "p50 {}, p90 {}, p99 {}, of {}",
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        number_of(times.count(), "voice", "voices")
    )
}
