//! The status as one page of HTML, without scripts, fonts or other requests.

use std::fmt;

use maud::{DOCTYPE, Markup, html};
use uuid::Uuid;

use super::Status;
use super::text::{budget, did, outbox, provider, times_of_kinds, waits_for};
use crate::core::backlog::{BAND_WORDS, BacklogKind};
use crate::core::format::{ago, moment, number_of, span};
use crate::core::quantiles::Quantiles;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2430;--faint:#667085;--paper:#fff;--line:#e4e7ec;--bar:#3b6fd4;--alarm:#b54708;--tint:#fff6ed}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--faint:#98a2b3;--paper:#14181f;--line:#2b323d;--bar:#6c9bf2;--alarm:#fdb022;--tint:#2b2113}}
body{margin:0 auto;padding:1rem;max-width:60rem;background:var(--paper);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1rem;margin:1.6rem 0 .4rem}p{margin:.3rem 0}
.faint{color:var(--faint)}.alarm{background:var(--tint);border-left:4px solid var(--alarm);padding:.5rem .8rem;margin:.5rem 0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2rem}
@media(max-width:32rem){.wide{display:none}}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--faint);font-weight:500}td.id{overflow-wrap:anywhere;min-width:8rem}td.fixed,th.fixed{white-space:nowrap}
svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .bar{fill:var(--bar)}svg .mark{stroke:var(--alarm);stroke-width:1.5}
";

/// Identifies the page's only style sheet. Browsers ignore any other one, for example in the texts of a voice.
#[derive(Debug, Clone, Copy)]
pub struct Nonce(Uuid);

impl Nonce {
    /// A value that was never used before.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The header `Content-Security-Policy` that goes with the page.
    pub fn policy(self) -> String {
        format!(
            "default-src 'none'; style-src 'nonce-{self}'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        )
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// The page with the status, or with the reason why there is none.
pub fn page(status: Result<&Status, &str>, nonce: Nonce) -> String {
    let (title, body) = match status {
        Ok(status) => {
            let title = format!(
                "{} in processing",
                number_of(status.survey.backlog.all(), "voice", "voices")
            );
            (title.clone(), known(status, &title))
        }
        Err(reason) => (
            "no status".to_owned(),
            html! { h1 { "The status is not available" } div.alarm { p { (reason) } } },
        ),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { "voice-sync: " (title) }
                style nonce=(nonce) { (maud::PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn known(status: &Status, title: &str) -> Markup {
    let Status { survey, attention } = status;
    let kinds = BacklogKind::ALL.map(|kind| (kind.words(), survey.backlog.of(kind)));
    let bands: Vec<_> = BAND_WORDS
        .into_iter()
        .zip(survey.backlog.by_age())
        .collect();
    html! {
        h1 { (title) }
        p.faint { "voice-sync, at " (moment(survey.read_at)) " UTC" }
        @for item in attention {
            div.alarm { p { strong { (item.says) } } p { (with_code(&item.advice)) } }
        }
        @if attention.is_empty() { p { "Nothing needs attention." } }
        div.two {
            section { h2 { "Backlog" } (bars("Voices in processing, by kind", &kinds)) }
            section { h2 { "Age" } (bars("Voices in processing, by age", &bands)) }
            section {
                h2 { "From clone to completed" }
                (times(&survey.completion_times))
                @for kind in times_of_kinds(status) { p { (kind) } }
            }
            section {
                h2 { "Provider" }
                @for account in &survey.accounts {
                    p { (provider(account, status)) }
                    @if let Some(budget) = budget(account, status) { p { (budget) } }
                }
                @if survey.accounts.is_empty() { p { "no request yet" } }
                h2 { "Outbox" }
                p { (outbox(status)) }
            }
        }
        @if !survey.oldest.is_empty() {
            h2 { "Oldest voices" }
            div.scroll { table {
                tr { th { "voice" } th.fixed { "age" } th.fixed.wide { "last lookup" } th { "waits for" } }
                @for voice in &survey.oldest {
                    tr {
                        td.id { (voice.voice_id) }
                        td.fixed { (voice.age.map(span).unwrap_or_default()) }
                        td.fixed.wide {
                            (voice.notes.as_ref().and_then(|notes| notes.last_asked)
                                .map_or("never".to_owned(), |at| ago(at, survey.read_at)))
                        }
                        td { (waits_for(voice, survey.read_at)) }
                    }
                }
            } }
        }
        h2 { "Last passes" }
        div.scroll { table {
            tr { th.fixed { "started" } th.fixed.wide { "took" } th.fixed { "exit" } th { "what it did" } }
            @for entry in &survey.runs {
                tr {
                    td.fixed { (ago(entry.started_at, survey.read_at)) }
                    td.fixed.wide { (span(entry.duration)) }
                    td.fixed { (entry.exit_code) }
                    td { (did(entry)) }
                }
            }
        } }
    }
}

/// Text between backticks is a command to type.
fn with_code(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// The width of every drawing, in its own units.
const WIDTH: f64 = 380.0;

/// Horizontal bars, one per line.
fn bars(what: &str, lines: &[(&str, u64)]) -> Markup {
    const ROW: usize = 22;
    const LABEL: f64 = 118.0;
    const NUMBER: f64 = 60.0;
    let most = lines
        .iter()
        .map(|(_, number)| *number)
        .max()
        .unwrap_or(0)
        .max(1);
    let view = format!("0 0 {WIDTH} {}", ROW * lines.len());
    html! {
        svg viewBox=(view) role="img" aria-label=(what) {
            @for (row, (label, number)) in lines.iter().enumerate() {
                @let length = (WIDTH - LABEL - NUMBER) * *number as f64 / most as f64;
                text x="0" y=(row * ROW + 15) { (label) }
                rect.bar x=(LABEL) y=(row * ROW + 4) width=(format!("{length:.1}")) height="14" rx="2" {}
                text x=(format!("{:.1}", LABEL + length + 6.0)) y=(row * ROW + 15) { (number) }
            }
        }
    }
}

/// A histogram of completion times with exponential buckets, and its 50 %, 90 % and 99 % quantiles.
fn times(times: &Quantiles) -> Markup {
    const BASE: f64 = 90.0;
    let quantiles = ["p50", "p90", "p99"].into_iter().zip([0.5, 0.9, 0.99]);
    let marks: Vec<_> = quantiles
        .filter_map(|(name, part)| Some((name, times.quantile(part)?)))
        .collect();
    if marks.is_empty() {
        return html! { p { "No voice was completed in the recorded passes." } };
    }
    let parts: Vec<_> = marks
        .iter()
        .map(|(name, at)| format!("{name} {}", span(*at)))
        .collect();
    let numbers = || times.buckets().map(|(bucket, _)| bucket);
    let (first, last) = (numbers().min().unwrap_or(0), numbers().max().unwrap_or(0));
    let step = WIDTH / (f64::from(last) - f64::from(first) + 1.0);
    let most = times
        .buckets()
        .map(|(_, count)| count)
        .max()
        .unwrap_or(1)
        .max(1);
    let place = |bucket: i32| (f64::from(bucket) - f64::from(first)) * step;
    let view = format!("0 0 {WIDTH} {BASE}");
    html! {
        p { (parts.join(", ")) }
        p.faint { "of " (number_of(times.count(), "voice", "voices")) " in the recorded passes" }
        svg viewBox=(view) role="img" aria-label="Time from clone to completed" {
            @for (bucket, count) in times.buckets() {
                @let height = (BASE - 20.0) * count as f64 / most as f64;
                rect.bar x=(format!("{:.1}", place(bucket))) y=(format!("{:.1}", BASE - height))
                    width=(format!("{:.1}", (step - 0.5).max(0.5))) height=(format!("{height:.1}")) {}
            }
            @for (name, at) in marks {
                @let x = format!("{:.1}", place(Quantiles::bucket(at)) + step / 2.0);
                line.mark x1=(x) x2=(x) y1="0" y2=(BASE) { title { (name) " " (span(at)) } }
            }
        }
    }
}
