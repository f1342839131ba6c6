//! What `voice-sync doctor` says of the provider.

use super::liveness::NO_VOICE;
use super::lookup::{Lookup, Lookups, Strategy};
use super::{Patience, Provider};
use crate::exit::Exit;
use crate::finding::Finding;
use crate::missing::Fuse;
use crate::voice::ProviderVoiceId;

/// Voices that the list showed and that are asked about singly as well.
const COMPARED: usize = 3;
const KEY: &str = "provider";
const AGREEMENT: &str = "lookups";

impl Provider {
    /// Asks about a few voices, or about none that there is, as a pass would, and compares what the
    /// list and single lookups say.
    pub async fn checkup(
        &self,
        ids: &[ProviderVoiceId],
        strategy: Strategy,
        patience: Patience<'_>,
    ) -> Vec<Finding> {
        // Whether the answer is "unknown" or "wrong", the key was taken.
        let nobody = ProviderVoiceId::parse(NO_VOICE).expect("it has the form of an id");
        let asked = match ids.is_empty() {
            true => std::slice::from_ref(&nobody),
            false => ids,
        };
        let singly = strategy == Strategy::Single;
        let lookups = self.look_up(asked, singly, patience).await;
        if let Some(reason) = self.key_refused() {
            let says = format!("{} refuses the key: {reason}", self.base);
            return vec![Finding::broken(KEY, Exit::Key, says).advise(
                "give another key with ELEVENLABS_API_KEY or --api-key-file; it needs the permission voices_read",
            )];
        }
        let trouble = lookups.values().find_map(|lookup| match lookup {
            Lookup::Unavailable(trouble) => Some(trouble),
            Lookup::Found { .. }
            | Lookup::Missing
            | Lookup::Rejected(_)
            | Lookup::Unanswerable(_) => None,
        });
        if let Some(trouble) = trouble {
            let says = format!("{} does not answer: {trouble}", self.base);
            return vec![
                Finding::broken(KEY, Exit::Temporary, says)
                    .advise("nothing is lost: a pass tries again, and fails no voice for it"),
            ];
        }
        let mut findings = vec![Finding::fine(
            KEY,
            format!("{} answers, and takes the key", self.base),
        )];
        if !ids.is_empty() {
            findings.extend(unanswerable(&lookups));
            findings.extend(unknown(&lookups));
            findings.push(match singly {
                true => Finding::fine(
                    AGREEMENT,
                    "each voice is asked about singly, as --lookup says",
                ),
                false => self.agreement(&lookups, patience).await,
            });
        }
        findings
    }

    async fn agreement(&self, lookups: &Lookups, patience: Patience<'_>) -> Finding {
        if self.has_no_list() {
            return Finding::doubtful(
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
        let again = self.look_up(&listed, true, patience).await;
        let same = |id: &&ProviderVoiceId| match (lookups.get(*id), again.get(*id)) {
            (Some(Lookup::Found { voice, .. }), Some(Lookup::Found { voice: other, .. })) => {
                voice == other
            }
            (_, _) => false,
        };
        let agreed = listed.iter().filter(same).count();
        if unlisted > 0 {
            return Finding::doubtful(
                AGREEMENT,
                format!(
                    "the list leaves out {unlisted} of {} voices that single lookups find",
                    lookups.len()
                ),
                "keep to --lookup auto: it asks singly about such voices",
            );
        }
        if agreed < listed.len() {
            return Finding::doubtful(
                AGREEMENT,
                format!(
                    "of {} voices, the list and single lookups say the same of {agreed} only",
                    listed.len()
                ),
                "run this again, they may have changed in between; if it stays so, use --lookup single",
            );
        }
        Finding::fine(
            AGREEMENT,
            format!("the list and single lookups say the same of {agreed} voices"),
        )
    }
}

fn unanswerable(lookups: &Lookups) -> Option<Finding> {
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
    Some(Finding::doubtful(
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
fn unknown(lookups: &Lookups) -> Option<Finding> {
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
        let mut fuse = Fuse::default();
        fuse.count(lookups.len() as u64, missing as u64);
        match fuse.is_blown() {
            true => Finding::broken(CHECK, Exit::Key, says).advise(ADVICE),
            false => Finding::doubtful(CHECK, says, ADVICE),
        }
    })
}
