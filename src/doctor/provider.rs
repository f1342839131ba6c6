//! The provider checks of `voice-sync doctor`.

use super::check::Check;
use crate::core::exit::Exit;
use crate::core::lookup::{Lookup, Lookups};
use crate::core::missing::MassAbsenceGuard;
use crate::core::voice::ProviderVoiceId;
use crate::provider::lookup::Strategy;
use crate::provider::{NO_VOICE, Provider, RequestDeadline};

/// Voices that the list returned and that are also looked up one by one.
const COMPARED: usize = 3;
const KEY: &str = "provider";
const AGREEMENT: &str = "lookups";

/// Looks up a few voices, or an id that does not exist if there are none, as a pass would. Compares the list with
/// single lookups.
pub async fn provider(
    provider: &Provider,
    ids: &[ProviderVoiceId],
    strategy: Strategy,
    deadline: RequestDeadline<'_>,
) -> Vec<Check> {
    // If the answer is "not found" or "rejected", the key was accepted.
    let nobody = ProviderVoiceId::parse(NO_VOICE).expect("it has the form of an id");
    let asked = match ids.is_empty() {
        true => std::slice::from_ref(&nobody),
        false => ids,
    };
    let singly = strategy == Strategy::Single;
    let lookups = provider.look_up(asked, singly, deadline).await;
    if let Some(reason) = provider.key_refused() {
        let says = format!("{} refuses the key: {reason}", provider.base());
        return vec![Check::broken(KEY, Exit::Key, says).advise(
            "set a valid key with ELEVENLABS_API_KEY or --api-key-file; it needs the permission voices_read",
        )];
    }
    let failure = lookups.values().find_map(|lookup| match lookup {
        Lookup::Unavailable(failure) => Some(failure),
        Lookup::Found { .. } | Lookup::Missing | Lookup::Rejected(_) | Lookup::Unanswerable(_) => {
            None
        }
    });
    if let Some(failure) = failure {
        let says = format!("{} is unavailable: {failure}", provider.base());
        return vec![
            Check::broken(KEY, Exit::Temporary, says)
                .advise("voices stay in processing, and the next pass looks them up; if it lasts, check the network \
                         and the provider's status page"),
        ];
    }
    let mut checks = vec![Check::fine(
        KEY,
        format!("{} answers and accepts the key", provider.base()),
    )];
    if !ids.is_empty() {
        checks.extend(unanswerable(&lookups));
        checks.extend(unknown(&lookups));
        checks.push(match singly {
            true => Check::fine(
                AGREEMENT,
                "not compared: with --lookup single, voices are looked up one by one",
            ),
            false => agreement(provider, &lookups, deadline).await,
        });
    }
    checks
}

async fn agreement(provider: &Provider, lookups: &Lookups, deadline: RequestDeadline<'_>) -> Check {
    if provider.has_no_list() {
        return Check::doubtful(
            AGREEMENT,
            "this URL has no list of voices; they are looked up one by one",
            "this takes one request per voice; if there is a gateway in between, let it forward /v2/voices",
        );
    }
    let (mut listed, mut unlisted) = (Vec::new(), 0);
    for (id, lookup) in lookups {
        match lookup {
            Lookup::Found { listed: true, .. } => listed.push(id.clone()),
            Lookup::Found { listed: false, .. } => unlisted += 1,
            Lookup::Missing
            | Lookup::Rejected(_)
            | Lookup::Unanswerable(_)
            | Lookup::Unavailable(_) => {}
        }
    }
    listed.truncate(COMPARED);
    let again = provider.look_up(&listed, true, deadline).await;
    let same = |id: &&ProviderVoiceId| match (lookups.get(*id), again.get(*id)) {
        (Some(Lookup::Found { voice, .. }), Some(Lookup::Found { voice: other, .. })) => {
            voice == other
        }
        (_, _) => false,
    };
    let agreed = listed.iter().filter(same).count();
    if unlisted > 0 {
        return Check::doubtful(
            AGREEMENT,
            format!(
                "the list does not return {unlisted} of {} voices that single lookups find",
                lookups.len()
            ),
            "use --lookup auto (the default): it looks such voices up one by one",
        );
    }
    if agreed < listed.len() {
        return Check::doubtful(
            AGREEMENT,
            format!(
                "the list and single lookups agree on only {agreed} of {} voices",
                listed.len()
            ),
            "run doctor again, because voices may have changed in between; if the result is the same, use --lookup \
             single",
        );
    }
    Check::fine(
        AGREEMENT,
        format!("the list and single lookups agree on {agreed} voices"),
    )
}

fn unanswerable(lookups: &Lookups) -> Option<Check> {
    let bad: Vec<_> = lookups
        .iter()
        .filter_map(|(id, lookup)| match lookup {
            Lookup::Unanswerable(failure) => Some((id, failure)),
            Lookup::Found { .. }
            | Lookup::Missing
            | Lookup::Rejected(_)
            | Lookup::Unavailable(_) => None,
        })
        .collect();
    let (id, failure) = bad.first()?;
    Some(Check::doubtful(
        "unanswerable",
        format!(
            "{} of {} voices cannot be looked up, such as {id}: {failure}",
            bad.len(),
            lookups.len()
        ),
        "they stay in processing and are looked up separately from the others; if it lasts, report their ids to the \
         provider",
    ))
}

/// A key of another workspace finds few or none of the voices.
fn unknown(lookups: &Lookups) -> Option<Check> {
    const CHECK: &str = "voices";
    const ADVICE: &str =
        "if these voices were not deleted, set the key of the workspace in which they were cloned";
    let missing = lookups
        .values()
        .filter(|lookup| matches!(lookup, Lookup::Missing))
        .count();
    (missing > 0).then(|| {
        let says = format!(
            "{missing} of {} voices are unknown to the provider",
            lookups.len()
        );
        let mut guard = MassAbsenceGuard::default();
        guard.count(lookups.len() as u64, missing as u64);
        match guard.is_tripped() {
            true => Check::broken(CHECK, Exit::Key, says).advise(ADVICE),
            false => Check::doubtful(CHECK, says, ADVICE),
        }
    })
}
