//! The end of a pass, after all its voices have been looked up: fails the voices that are confirmed to be missing,
//! publishes the rest of the outbox, and writes the pass to the ledger.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::progress::Progress;
use super::{Pass, Which};
use crate::core::exit::Exit;
use crate::core::missing::{self, Absence, Others};
use crate::core::report::{self, Counts, Report, StopReason};
use crate::core::request_budget::Spending;
use crate::core::transition::{Note, Seen, Target, Transition};
use crate::core::verdict::Failure;
use crate::core::voice::{Position, StoredProviderId};
use crate::store::{MissingVoice, NextPass, Run, StoreError};

/// Missing voices that are read at once.
const PAGE: u32 = 500;

/// Rows of each of voice-sync's own tables that one transaction removes.
const TIDIED_AT_ONCE: u32 = 1000;
/// On average, one of this many passes of a daemon removes old rows; likewise for passes without work.
const PASSES_A_TIDYING: u32 = 50;

/// The values that are known at the end of a pass.
#[derive(Default)]
pub(super) struct Ending {
    resume_after: Option<Position>,
    pub(super) events_stuck: bool,
}

impl Pass<'_> {
    pub(super) async fn finish(&self, progress: Progress, started_at: DateTime<Utc>) -> Report {
        let mut ending = Ending::default();
        if !self.has_no_database(&progress)
            && let Err(error) = self.end(&progress, &mut ending).await
        {
            progress.database_failed(&error);
        }
        let report = self.report(&progress, &ending, started_at);
        if !self.scope.dry_run && !self.has_no_database(&progress) {
            self.record(&progress, &report, ending).await;
        }
        report
    }

    pub(super) fn has_no_database(&self, progress: &Progress) -> bool {
        matches!(progress.tally().stop_reason, Some(StopReason::Database(..)))
    }

    async fn end(&self, progress: &Progress, ending: &mut Ending) -> Result<(), StoreError> {
        self.note_undecided(progress).await?;
        self.left_undone(progress, ending).await?;
        self.judge_missing(progress).await?;
        let refused = progress.tally().refuses_all();
        if let Some(stop_reason) = refused {
            progress.stop(stop_reason);
        }
        if self.scope.dry_run {
            return Ok(());
        }
        // A pass that was cut short, or that looked up only a few voices, says nothing about all voices.
        let was_cut_short = progress.tally().stop_reason.is_some() || self.is_over(progress);
        if !was_cut_short && self.scope.which == Which::All {
            self.provider.passed();
        }
        self.share_state(progress).await?;
        self.publish_rest(progress, ending).await?;
        self.take_out_finished(progress).await;
        if let Some(nudger) = self.nudger.filter(|nudger| !nudger.runs_beside())
            && !was_cut_short
        {
            nudger
                .run_after_pass(self.store, self.provider, self.scope.until, self.stop)
                .await;
        }
        Ok(())
    }

    async fn note_undecided(&self, progress: &Progress) -> Result<(), StoreError> {
        let notes = progress.tally().take_undecided();
        match self.scope.dry_run {
            true => Ok(()),
            false => self.note(progress, &notes).await,
        }
    }

    /// Counts the voices that a pass did not claim because it had to stop or because isolated voices took too long, and
    /// determines where the next pass begins.
    async fn left_undone(
        &self,
        progress: &Progress,
        ending: &mut Ending,
    ) -> Result<(), StoreError> {
        let claims = &progress.claims.lock().await;
        let (rest, resume_after) = claims.segments.rest();
        ending.resume_after = progress.tally().resume_after(resume_after);
        let was_stopped = progress.tally().stop_reason.is_some();
        if !was_stopped && !claims.is_isolated() {
            return Ok(());
        }
        let mut left = 0;
        for selection in &rest {
            left += self.store.count(selection).await?;
        }
        let left = claims.segments.left().map_or(left, |limit| limit.min(left));
        let counts = &mut progress.tally().counts;
        counts.due += left;
        if !was_stopped {
            counts.unanswerable += left.saturating_sub(claims.new_left());
        }
        Ok(())
    }

    /// Fails the voices that are confirmed to be missing, unless so many are missing that the key is the probable
    /// cause.
    async fn judge_missing(&self, progress: &Progress) -> Result<(), StoreError> {
        let guard = progress.tally().guard;
        let account = self.provider.account();
        if guard.is_tripped() {
            progress.stop(StopReason::OtherWorkspace(guard));
            if !self.scope.dry_run {
                self.store.begin_mass_absence(account).await?;
            }
        }
        if !guard.is_tripped() && !guard.missed_any() && progress.mass_absence {
            // Without a missing voice in this pass, the mass absence may be over.
            self.store.mass_absence(account).await?;
        }
        if guard.is_tripped() || !guard.missed_any() {
            return Ok(());
        }
        if self.scope.dry_run {
            let counts = &mut progress.tally().counts;
            if self.missing_after.is_zero() {
                counts.failed += std::mem::take(&mut counts.missing);
            }
            return Ok(());
        }
        // The guard does not apply if the user named the voices.
        if !matches!(self.scope.which, Which::Named(_)) {
            let absence = self.store.mass_absence(account).await?;
            if absence.forbids_failures() {
                progress.stop(StopReason::OtherWorkspace(absence.as_guard()));
                return Ok(());
            }
        }
        let mut after = None;
        loop {
            let page = self
                .store
                .missing(progress.run_id, account, after.as_ref(), PAGE)
                .await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.row.clone());
            let confirmed = page
                .into_iter()
                .filter_map(|voice| self.confirm(voice, guard.found_any()));
            self.fail_missing(progress, confirmed.collect()).await?;
        }
    }

    fn confirm(&self, voice: MissingVoice, found_any: bool) -> Option<Transition> {
        let MissingVoice {
            row,
            provider_id,
            times,
            lasting,
            last_found,
        } = voice;
        let others = match last_found {
            _ if found_any => Others::FoundSince,
            Some(ago) if ago < lasting => Others::FoundSince,
            Some(_) => Others::FoundBefore,
            None => Others::NeverFound,
        };
        let absence = Absence {
            times,
            lasting,
            others,
        };
        let confirmed = missing::is_confirmed(absence, self.missing_after, self.rules.fail_after);
        confirmed.then(|| Transition {
            row,
            provider_id: StoredProviderId::new(provider_id),
            target: Target::Failed {
                reason: Failure::Missing.to_string(),
            },
        })
    }

    async fn fail_missing(
        &self,
        progress: &Progress,
        confirmed: Vec<Transition>,
    ) -> Result<(), StoreError> {
        let mut refused: Vec<Note> = Vec::new();
        let count = confirmed.len() as u64;
        let events = self.apply_each(progress, confirmed, &mut refused).await?;
        // Each of these voices was counted as missing when it was looked up.
        {
            let mut tally = progress.tally();
            tally.counts.missing = tally.counts.missing.saturating_sub(count);
            tally.failed_missing += count;
        }
        // If the application changed or locked the row, the notes about the missing voice stay unchanged.
        refused.retain(|note| note.seen != Seen::Superseded);
        self.note(progress, &refused).await?;
        self.count_notes(progress, &refused);
        self.publish_new(progress, events).await
    }

    fn report(&self, progress: &Progress, ending: &Ending, started_at: DateTime<Utc>) -> Report {
        let tally = progress.tally();
        let mut counts = tally.counts.clone();
        let (requests, retries) = progress.requests_before;
        counts.requests = self.provider.requests() - requests;
        counts.retries = self.provider.retries() - retries;
        if let Some(nudger) = self.nudger {
            (counts.nudged, counts.nudge_characters) = nudger.take_counts();
            counts.requests += counts.nudged;
        }
        counts.looked_up = counts.answered();
        counts.unavailable = counts
            .due
            .saturating_sub(counts.looked_up + counts.leased_elsewhere);
        let exit_code = report::exit(&counts, tally.stop_reason.as_ref(), ending.events_stuck);
        let duration = progress.started.elapsed();
        let reason = tally.stop_reason.as_ref().map(StopReason::to_string);
        let obstacles = tally.obstacles();
        tally.log_set_aside();
        tally.log_unanswerable();
        // A continuous process logs failures once, and not in each pass.
        if !self.scope.continuous {
            tally.log_errors();
        }
        if let Some(stop_reason) = tally
            .stop_reason
            .as_ref()
            .filter(|_| !self.scope.continuous)
        {
            match exit_code {
                Exit::Temporary => warn!(
                    event = "pass_stopped",
                    exit_code = exit_code.code(),
                    "the pass stopped: {stop_reason}"
                ),
                Exit::Success
                | Exit::Declined
                | Exit::Usage
                | Exit::Database
                | Exit::Io
                | Exit::Key
                | Exit::Config => {
                    error!(
                        event = "pass_stopped",
                        exit_code = exit_code.code(),
                        "the pass stopped: {stop_reason}"
                    );
                }
            }
        }
        log_pass(
            progress.run_id,
            self.scope.dry_run,
            exit_code,
            duration,
            &counts,
        );
        Report {
            run_id: progress.run_id,
            started_at,
            finished_at: Utc::now(),
            duration_ms: duration.as_millis() as u64,
            dry_run: self.scope.dry_run,
            counts,
            exit_code,
            reason,
            obstacles,
            key_works: (tally.guard.found_any() || progress.key_works)
                && !matches!(tally.stop_reason, Some(StopReason::KeyRefused(_))),
        }
    }

    /// The counts for the ledger. They include the voices that failed because they were missing: the mass-absence guard
    /// counts these over many passes, and the note of a voice is deleted when the voice is cloned again. Voices that
    /// the user named do not count for the guard.
    fn counts(&self, report: &Report, failed_missing: u64) -> serde_json::Value {
        let mut counts = json!(report.counts);
        if failed_missing > 0 && !matches!(self.scope.which, Which::Named(_)) {
            counts["failed_missing"] = failed_missing.into();
        }
        counts
    }

    /// What this many requests take from the budget, if there is one. The budget shrinks with the provider's
    /// concurrency limit.
    pub(crate) fn spending(&self, requests: u64) -> Option<Spending> {
        let budget = self.scope.budget?;
        let borne = f64::from(self.provider.pressure().limit.max(1));
        let pressure = self.provider.concurrency() as f64 / borne;
        Some(Spending {
            budget,
            taken: budget.taken_by(requests, pressure),
            voices_a_request: self.voices_a_request(),
        })
    }

    /// Removes old rows. The number of rounds grows with the claimed voices, so that passes remove rows at least as
    /// fast as they add them.
    async fn tidy(&self, due: u64) -> Result<(), StoreError> {
        for _ in 0..=(2 * due / u64::from(TIDIED_AT_ONCE)) {
            if self.store.tidy(TIDIED_AT_ONCE).await? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Writes the pass to the ledger and removes old rows. A failure of either does not fail the pass.
    async fn record(&self, progress: &Progress, report: &Report, ending: Ending) {
        if report.counts.only_met_leases() && report.counts.requests == 0 {
            return;
        }
        let (found, failed_missing, unlisted, completion_times, completion_times_by_kind) = {
            let mut tally = progress.tally();
            let times = std::mem::take(&mut tally.completion_times);
            let by_kind = std::mem::take(&mut tally.completion_times_by_kind);
            (
                tally.guard.found(),
                tally.failed_missing,
                tally.unlisted(),
                times,
                by_kind,
            )
        };
        let run = Run {
            run_id: report.run_id,
            account: (report.counts.requests > 0).then(|| self.provider.account()),
            command: matches!(self.scope.which, Which::Named(_)).then_some("sync-once --voice"),
            started_at: report.started_at,
            duration: progress.started.elapsed(),
            exit_code: report.exit_code.code(),
            found,
            counts: self.counts(report, failed_missing),
            cursor: match (&self.scope.which, ending.resume_after) {
                (Which::Named(_) | Which::Due(_), _) => NextPass::AsBefore,
                (Which::All, None) => NextPass::FromTheBeginning,
                (Which::All, Some(position)) => NextPass::After(position),
            },
            unlisted,
            concurrency: self.provider.state().concurrency,
            spending: self.spending(report.counts.lookup_requests()),
            completion_times,
            completion_times_by_kind,
        };
        if let Err(error) = self.store.record_run(&run).await {
            warn!(%error, "the pass could not be written to the ledger; its transitions are not affected");
        }
        // A process with one pass a second removes old rows only once in many passes.
        let passes = match self.scope.continuous || report.counts.due == 0 {
            true => PASSES_A_TIDYING,
            false => 1,
        };
        if fastrand::u32(..passes) == 0
            && let Err(error) = self.tidy(report.counts.due * u64::from(passes)).await
        {
            warn!(%error, "old rows of voice-sync's own tables could not be removed; the next pass tries again");
        }
    }
}

/// Logs one line for a pass, at debug if it had nothing to do.
fn log_pass(run_id: Uuid, dry_run: bool, exit_code: Exit, duration: Duration, counts: &Counts) {
    macro_rules! log {
        ($level:ident) => {
            $level!(
                event = "pass_finished", %run_id, dry_run, exit_code = exit_code.code(),
                duration_ms = duration.as_millis() as u64, due = counts.due,
                completed = counts.completed, failed = counts.failed, processing = counts.processing,
                missing = counts.missing, unavailable = counts.unavailable,
                set_aside = counts.set_aside, superseded = counts.superseded,
                leased_elsewhere = counts.leased_elsewhere, requests = counts.requests,
                events_published = counts.events_published, events_pending = counts.events_pending,
                "pass finished"
            )
        };
    }
    match exit_code == Exit::Success && counts.due == 0 && counts.events_published == 0 {
        true => log!(debug),
        false => log!(info),
    }
}
