//! What an answer means for a claimed voice: a change of its row's status, or a note. Pure.

use std::time::Duration;

use super::format::printable;
use super::lookup::{Lookup, Unavailable, UnavailableKind};
use super::nudge::Nudge;
use super::transition::{Claimed, Seen, SetAside, Target};
use super::verdict::{OnTimeout, Rule, Rules, Verdict, judge_by_rule, storable};

/// The settings and circumstances for a verdict, besides the lookup.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    pub rules: &'a Rules,
    /// The maximum length of a preview in characters; `None` is any length.
    pub preview_room: Option<usize>,
    /// Time since the voice was claimed with its age.
    pub held: Duration,
    /// Whether the provider found any voice: otherwise, rejected requests are not the voice's fault.
    pub found_any: bool,
    /// Whether this voice may be the cause of a failed request.
    pub is_suspect: bool,
}

/// The effect on the row, and the rule that decided, if there was an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Judgement {
    Moves(Target, Rule),
    Stays(Seen, Option<Rule>),
}

/// Judges one voice. `None` is a voice that was not looked up.
pub fn judge(claimed: &Claimed, lookup: Option<&Lookup>, grounds: Grounds<'_>) -> Judgement {
    let Grounds {
        rules,
        preview_room,
        held,
        found_any,
        is_suspect,
    } = grounds;
    if let Err(invalid) = claimed.checked_id() {
        return Judgement::Stays(Seen::SetAside(invalid.into()), None);
    }
    let seen = match lookup {
        Some(Lookup::Found { voice, listed: _ }) => {
            let age = claimed.age.counted(rules.age_from) + held;
            let (rule, verdict) = match claimed.nudge {
                // A voice that cannot speak does not complete without a preview.
                Some(Nudge::Silent) => {
                    let rules = Rules {
                        on_timeout: OnTimeout::Fail,
                        ..rules.clone()
                    };
                    judge_by_rule(voice, age, &rules)
                }
                Some(
                    Nudge::Sent | Nudge::Spoke | Nudge::Unclear | Nudge::Refused | Nudge::Unsent,
                )
                | None => judge_by_rule(voice, age, rules),
            };
            return match verdict {
                Verdict::Completed { preview_url } => {
                    let url = preview_url.as_deref();
                    match url.map_or(Ok(()), |url| storable(url, preview_room)) {
                        Ok(()) => Judgement::Moves(Target::Completed { preview_url }, rule),
                        Err(unstorable) => {
                            Judgement::Stays(Seen::SetAside(unstorable.into()), Some(rule))
                        }
                    }
                }
                Verdict::Failed(failure) => {
                    let reason = printable(&failure.to_string());
                    Judgement::Moves(Target::Failed { reason }, rule)
                }
                Verdict::Processing(stage) => {
                    let kind = printable(voice.kind());
                    Judgement::Stays(Seen::Processing { kind, stage }, Some(rule))
                }
            };
        }
        Some(Lookup::Missing) => Seen::Missing,
        Some(Lookup::Rejected(reason)) if found_any => {
            Seen::SetAside(SetAside::Rejected(reason.clone()))
        }
        Some(Lookup::Rejected(reason)) => {
            let why = Unavailable::new(UnavailableKind::Status, reason);
            Seen::Unavailable(why.to_string())
        }
        Some(Lookup::Unanswerable(why)) => Seen::Unanswerable {
            reason: why.to_string(),
            times: claimed.unanswered + 1,
        },
        Some(Lookup::Unavailable(why)) if is_suspect => Seen::Suspected(why.to_string()),
        Some(Lookup::Unavailable(why)) => Seen::Unavailable(why.to_string()),
        None => Seen::Unavailable("not looked up".to_owned()),
    };
    Judgement::Stays(seen, None)
}
