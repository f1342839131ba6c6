//! What `voice-sync doctor` says of the provider.

use super::check::Check;
use crate::core::exit::Exit;
use crate::core::lookup::{Lookup, Lookups};
use crate::core::missing::MassAbsenceGuard;
use crate::core::voice::ProviderVoiceId;
use crate::provider::lookup::Strategy;
use crate::provider::{NO_VOICE, Provider, RequestDeadline};

/// Voices that the list showed and that are asked about singly as well.
const COMPARED: usize = 3;
const KEY: &str = "provider";
const AGREEMENT: &str = "lookups";

/// Asks about a few voices, or about none that there is, as a pass would, and compares what the
/// list and single lookups say.
pub async fn provider(
    provider: &Provider,
    ids: &[ProviderVoiceId],
    strategy: Strategy,
    deadline: RequestDeadline<'_>,
) -> Vec<Check> {
    // Whether the answer is "unknown" or "wrong", the key was taken.
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
            "give another key with ELEVENLABS_API_KEY or --api-key-file; it needs the permission voices_read",
        )];
    }
    let trouble = lookups.values().find_map(|lookup| match lookup {
        Lookup::Unavailable(trouble) => Some(trouble),
        Lookup::Found { .. } | Lookup::Missing | Lookup::Rejected(_) | Lookup::Unanswerable(_) => {
            None
        }
    });
    if let Some(trouble) = trouble {
        let says = format!("{} does not answer: {trouble}", provider.base());
        return vec![
            Check::broken(KEY, Exit::Temporary, says)
                .advise("nothing is lost: a pass tries again, and fails no voice for it"),
        ];
    }
    let mut checks = vec![Check::fine(
        KEY,
        format!("{} answers, and takes the key", provider.base()),
    )];
    if !ids.is_empty() {
        checks.extend(unanswerable(&lookups));
        checks.extend(unknown(&lookups));
        checks.push(match singly {
            true => Check::fine(
                AGREEMENT,
                "each voice is asked about singly, as --lookup says",
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
            "there is no list of voices at this URL; each is asked about singly",
            "this costs a request for each voice; if a gateway stands between, have it pass /v2/voices on",
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
                "the list leaves out {unlisted} of {} voices that single lookups find",
                lookups.len()
            ),
            "keep to --lookup auto: it asks singly about such voices",
        );
    }
    if agreed < listed.len() {
        return Check::doubtful(
            AGREEMENT,
            format!(
                "of {} voices, the list and single lookups say the same of {agreed} only",
                listed.len()
            ),
            "run this again, they may have changed in between; if it stays so, use --lookup single",
        );
    }
    Check::fine(
        AGREEMENT,
        format!("the list and single lookups say the same of {agreed} voices"),
    )
}

fn unanswerable(lookups: &Lookups) -> Option<Check> {
    let bad: Vec<_> = lookups
        .iter()
        .filter_map(|(id, lookup)| match lookup {
            Lookup::Unanswerable(trouble) => Some((id, trouble)),
            Lookup::Found { .. }
            | Lookup::Missing
            | Lookup::Rejected(_)
            | Lookup::Unavailable(_) => None,
        })
        .collect();
    let (id, trouble) = bad.first()?;
    Some(Check::doubtful(
        "unanswerable",
        format!(
            "{} of {} voices cannot be looked up, such as {id}: {trouble}",
            bad.len(),
            lookups.len()
        ),
        "they stay in processing and are asked about apart from the others; if it lasts, tell the provider their ids",
    ))
}

/// A key of another workspace finds none of the voices, or few.
fn unknown(lookups: &Lookups) -> Option<Check> {
    const CHECK: &str = "voices";
    const ADVICE: &str = "if they were not deleted, the key is of another workspace than the one they were cloned in";
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
