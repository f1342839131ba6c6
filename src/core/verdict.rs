//! What an answer about a voice means for its row. Pure: the time is given as the voice's age.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use url::Url;

use crate::core::voice::{Category, FineTuning, FineTuningState, GatewayStatus, Voice};

/// The user's settings for verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How long a voice may be in processing; `None` is without limit.
    pub fail_after: Option<Duration>,
    /// When that time starts.
    pub age_from: AgeFrom,
    /// What happens to a voice that has been in processing for longer.
    pub on_timeout: OnTimeout,
    /// The fine-tuning models that decide; `None` is all models of the voice.
    pub models: Option<BTreeSet<String>>,
}

/// When the time in processing starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AgeFrom {
    /// When voice-sync first saw this row in processing with this provider id.
    #[default]
    FirstSeen,
    /// When the row was created, unless it is known to have been finished since then.
    Created,
}

/// For how long a voice has been in processing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Age {
    /// Since its row was created, as far as known. This may be wrong: a row may have been finished and cloned again
    /// since then, and a timestamp without a time zone may be read in the wrong one.
    pub created: Duration,
    /// Since voice-sync first saw the row in processing with this provider id.
    pub witnessed: Duration,
    /// Whether the row was finished before.
    pub was_finished: bool,
}

impl Age {
    /// The age that counts for the timeout.
    pub fn counted(self, from: AgeFrom) -> Duration {
        match from {
            AgeFrom::FirstSeen => self.witnessed,
            AgeFrom::Created if self.was_finished => self.witnessed,
            AgeFrom::Created => self.created,
        }
    }
}

/// What happens to a voice that was in processing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnTimeout {
    /// It fails.
    #[default]
    Fail,
    /// It completes without a preview: for applications whose voices work but never get one.
    Complete,
}

/// What an answer means for a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The voice is ready.
    Completed {
        /// The preview, if it has one.
        preview_url: Option<String>,
    },
    /// The voice will never be ready.
    Failed(Failure),
    /// Not decided yet.
    Processing(Stage),
}

/// Why a voice failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A gateway's `status` says `failed`.
    Reported,
    /// Moderation has banned it.
    Banned,
    /// Training failed, with the provider's message.
    Training(Option<String>),
    /// It was in processing for longer than allowed.
    TimedOut,
    /// The provider does not know it, and this was confirmed.
    Missing,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Banned => f.write_str("banned"),
            Self::Training(None) => f.write_str("training"),
            Self::Training(Some(message)) => write!(f, "training: {message}"),
            Self::TimedOut => f.write_str("timed_out"),
            Self::Missing => f.write_str("missing"),
        }
    }
}

/// What a voice in processing waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// For the provider to make its preview.
    Preparing,
    /// For training: a professional voice is queued or being trained.
    Training,
    /// For its owner, who has to verify it or start its training.
    WaitingForOwner,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Training => "training",
            Self::WaitingForOwner => "waiting_for_owner",
        }
    }
}

/// The rule that decided, as in docs/reference/verdicts.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A gateway's top-level `status`.
    Status = 1,
    /// A ban.
    Ban = 2,
    /// A professional voice, by the models that decide.
    Training = 3,
    /// Any other voice, by its preview and verification.
    Preview = 4,
    /// A voice that is still processing by the other rules, by its age.
    Age = 5,
}

impl Rule {
    /// Its number in the documentation.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::Status => "the answer has a top-level status, which some gateways add",
            Self::Ban => "safety_control is a ban",
            Self::Training => "a professional voice is judged by the models that it is trained for",
            Self::Preview => {
                "a voice that is not professional is completed when it has a preview_url"
            }
            Self::Age => {
                "in processing for longer than --fail-after, confirmed by an answer just now"
            }
        };
        write!(f, "rule {}: {words}", self.number())
    }
}

/// Judges one voice by an answer, with the first [`Rule`] that applies. Professional voices are exempt from
/// [`Rule::Age`]: training takes hours, and owners take days.
pub fn judge(voice: &Voice, age: Duration, rules: &Rules) -> Verdict {
    judge_by_rule(voice, age, rules).1
}

/// Same as [`judge`], and returns the rule that decided.
pub fn judge_by_rule(voice: &Voice, age: Duration, rules: &Rules) -> (Rule, Verdict) {
    let professional = voice.category == Some(Category::Professional);
    let (rule, verdict) = by_status(voice, professional)
        .map(|verdict| (Rule::Status, verdict))
        .or_else(|| by_ban(voice).map(|verdict| (Rule::Ban, verdict)))
        .unwrap_or_else(|| match professional {
            true => (Rule::Training, by_training(voice, rules)),
            false => (Rule::Preview, by_preview(voice)),
        });
    let overdue = !professional && is_overdue(age, rules);
    match (&verdict, rules.on_timeout) {
        (Verdict::Processing(_), OnTimeout::Fail) if overdue => {
            (Rule::Age, Verdict::Failed(Failure::TimedOut))
        }
        (Verdict::Processing(_), OnTimeout::Complete) if overdue => (Rule::Age, completed(voice)),
        (Verdict::Completed { .. } | Verdict::Failed(_) | Verdict::Processing(_), _) => {
            (rule, verdict)
        }
    }
}

fn by_status(voice: &Voice, professional: bool) -> Option<Verdict> {
    match voice.status.as_ref()? {
        GatewayStatus::Completed => Some(completed(voice)),
        GatewayStatus::Failed => Some(Verdict::Failed(Failure::Reported)),
        GatewayStatus::Processing => Some(Verdict::Processing(match professional {
            true => Stage::Training,
            false => Stage::Preparing,
        })),
        GatewayStatus::Unknown(_) => None,
    }
}

fn by_ban(voice: &Voice) -> Option<Verdict> {
    let banned = voice.safety_control.as_ref()?.is_ban();
    banned.then_some(Verdict::Failed(Failure::Banned))
}

fn by_training(voice: &Voice, rules: &Rules) -> Verdict {
    let none = FineTuning::default();
    let fine_tuning = voice.fine_tuning.as_ref().unwrap_or(&none);
    let deciding: Vec<_> = fine_tuning
        .states()
        .filter(|(model, _)| rules.models.as_ref().is_none_or(|m| m.contains(*model)))
        .collect();

    if deciding
        .iter()
        .any(|(_, s)| **s == FineTuningState::FineTuned)
    {
        return completed(voice);
    }
    if !deciding.is_empty() && deciding.iter().all(|(_, s)| **s == FineTuningState::Failed) {
        let message = deciding.iter().find_map(|(m, _)| fine_tuning.message(m));
        return Verdict::Failed(Failure::Training(message.map(str::to_owned)));
    }
    let with_provider = deciding.iter().any(|(_, state)| match state {
        FineTuningState::Queued
        | FineTuningState::FineTuning
        | FineTuningState::Delayed
        | FineTuningState::Unknown(_) => true,
        FineTuningState::NotStarted | FineTuningState::FineTuned | FineTuningState::Failed => false,
    });
    Verdict::Processing(match with_provider && !voice.is_unverified() {
        true => Stage::Training,
        false => Stage::WaitingForOwner,
    })
}

fn by_preview(voice: &Voice) -> Verdict {
    if voice.preview().is_some() {
        completed(voice)
    } else if voice.is_unverified() {
        Verdict::Processing(Stage::WaitingForOwner)
    } else {
        Verdict::Processing(Stage::Preparing)
    }
}

fn completed(voice: &Voice) -> Verdict {
    Verdict::Completed {
        preview_url: voice.preview().map(str::to_owned),
    }
}

/// Whether a voice of this age has been in processing for too long.
pub fn is_overdue(age: Duration, rules: &Rules) -> bool {
    rules.fail_after.is_some_and(|limit| age > limit)
}

/// Why a preview cannot be written to the application's row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unstorable {
    /// NUL, line breaks and the like: PostgreSQL refuses some of them, and browsers interpret others differently.
    #[error("the preview_url contains the control character {0:?}")]
    ControlCharacter(char),
    /// Not a URL that a browser could play.
    #[error("the preview_url is not an absolute http(s) URL")]
    NotAUrl,
    /// A shortened URL would point to something else.
    #[error("the preview_url has {chars} characters, but the column holds only {room}")]
    TooLong { chars: usize, room: usize },
}

/// Checks that a preview can be stored unchanged in a column with room for `room` characters (`None`: any length).
pub fn storable(preview_url: &str, room: Option<usize>) -> Result<(), Unstorable> {
    if let Some(character) = preview_url.chars().find(|c| c.is_control()) {
        return Err(Unstorable::ControlCharacter(character));
    }
    let chars = preview_url.chars().count();
    if let Some(room) = room.filter(|&room| chars > room) {
        return Err(Unstorable::TooLong { chars, room });
    }
    // The parser ignores surrounding spaces and adds missing slashes, but the stored text would not be changed.
    let spelled_out = ["http://", "https://"].iter().any(|scheme| {
        preview_url
            .get(..scheme.len())
            .is_some_and(|p| p.eq_ignore_ascii_case(scheme))
    });
    let spaced = preview_url.contains(char::is_whitespace);
    match Url::parse(preview_url) {
        Ok(url) if url.has_host() && spelled_out && !spaced => Ok(()),
        Ok(_) | Err(_) => Err(Unstorable::NotAUrl),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const YOUNG: Duration = Duration::from_secs(60);
    const OLD: Duration = Duration::from_secs(25 * 60 * 60);

    fn rules() -> Rules {
        Rules {
            fail_after: Some(DAY),
            age_from: AgeFrom::default(),
            on_timeout: OnTimeout::Fail,
            models: None,
        }
    }

    fn voice(fields: &str) -> Voice {
        let json = format!(
            r#"{{"voice_id":"v"{}{fields}}}"#,
            if fields.is_empty() { "" } else { "," }
        );
        serde_json::from_str(&json).expect("the test's JSON is a voice")
    }

    fn done(preview: Option<&str>) -> Verdict {
        Verdict::Completed {
            preview_url: preview.map(str::to_owned),
        }
    }

    /// Every rule in docs/reference/verdicts.md, in its order.
    #[test]
    fn each_rule_decides_as_documented() {
        use Stage::{Preparing, Training, WaitingForOwner};
        use Verdict::{Failed, Processing};

        let preview = r#""preview_url":"https://x/p.mp3""#;
        let unverified =
            r#""voice_verification":{"requires_verification":true,"is_verified":false}"#;
        let pvc =
            |state: &str| format!(r#""category":"professional","fine_tuning":{{"state":{state}}}"#);

        let matrix: Vec<(String, Duration, Verdict)> = vec![
            // 1. A gateway's status, over everything else.
            (
                format!(r#""status":"completed",{preview}"#),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            (r#""status":"completed""#.into(), OLD, done(None)),
            (
                format!(r#""status":"failed",{preview}"#),
                YOUNG,
                Failed(Failure::Reported),
            ),
            (
                format!(r#""status":"processing",{preview}"#),
                YOUNG,
                Processing(Preparing),
            ),
            (
                r#""status":"processing""#.into(),
                OLD,
                Failed(Failure::TimedOut),
            ),
            (
                r#""status":"processing","category":"professional""#.into(),
                OLD,
                Processing(Training),
            ),
            (
                r#""status":"completed","safety_control":"BAN""#.into(),
                YOUNG,
                done(None),
            ),
            (
                format!(r#""status":"confused",{preview}"#),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            // 2. A ban, over preview and training.
            (
                format!(r#""safety_control":"BAN",{preview}"#),
                YOUNG,
                Failed(Failure::Banned),
            ),
            (
                format!(
                    r#""safety_control":"ENTERPRISE_BAN",{}"#,
                    pvc(r#"{"m":"fine_tuned"}"#)
                ),
                YOUNG,
                Failed(Failure::Banned),
            ),
            (
                format!(r#""safety_control":"CAPTCHA",{preview}"#),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            (
                format!(r#""safety_control":"ENTERPRISE_CAPTCHA",{preview}"#),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            (
                format!(r#""safety_control":"NONE",{preview}"#),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            // 3. Professional voices.
            (pvc(r#"{"a":"fine_tuned","b":"failed"}"#), YOUNG, done(None)),
            (
                pvc(r#"{"a":"fine_tuned","b":"fine_tuning"}"#),
                YOUNG,
                done(None),
            ),
            (
                pvc(r#"{"a":"failed","b":"failed"},"message":{"a":null,"b":"too noisy"}"#),
                YOUNG,
                Failed(Failure::Training(Some("too noisy".into()))),
            ),
            (
                pvc(r#"{"a":"failed"}"#),
                OLD,
                Failed(Failure::Training(None)),
            ),
            (
                pvc(r#"{"a":"failed","b":"queued"}"#),
                OLD,
                Processing(Training),
            ),
            (pvc(r#"{"a":"queued"}"#), OLD, Processing(Training)),
            (pvc(r#"{"a":"fine_tuning"}"#), OLD, Processing(Training)),
            (pvc(r#"{"a":"delayed"}"#), OLD, Processing(Training)),
            (pvc(r#"{"a":"pondering"}"#), OLD, Processing(Training)),
            (
                pvc(r#"{"a":"not_started"}"#),
                OLD,
                Processing(WaitingForOwner),
            ),
            (pvc("{}"), OLD, Processing(WaitingForOwner)),
            (pvc("null"), OLD, Processing(WaitingForOwner)),
            (
                r#""category":"professional""#.into(),
                OLD,
                Processing(WaitingForOwner),
            ),
            (
                format!("{},{unverified}", pvc(r#"{"a":"queued"}"#)),
                OLD,
                Processing(WaitingForOwner),
            ),
            (
                format!("{},{preview}", pvc(r#"{"a":"queued"}"#)),
                OLD,
                Processing(Training),
            ),
            // 4. All others.
            (preview.into(), YOUNG, done(Some("https://x/p.mp3"))),
            (preview.into(), OLD, done(Some("https://x/p.mp3"))),
            (
                format!("{preview},{unverified}"),
                YOUNG,
                done(Some("https://x/p.mp3")),
            ),
            (unverified.into(), YOUNG, Processing(WaitingForOwner)),
            (
                r#""category":"cloned""#.into(),
                YOUNG,
                Processing(Preparing),
            ),
            (r#""preview_url":"""#.into(), YOUNG, Processing(Preparing)),
            (
                r#""category":"holographic""#.into(),
                YOUNG,
                Processing(Preparing),
            ),
            (String::new(), YOUNG, Processing(Preparing)),
            // 5. Too long in processing.
            (String::new(), DAY, Processing(Preparing)),
            (String::new(), OLD, Failed(Failure::TimedOut)),
            (unverified.into(), OLD, Failed(Failure::TimedOut)),
        ];
        for (fields, age, expected) in matrix {
            assert_eq!(
                judge(&voice(&fields), age, &rules()),
                expected,
                "{{{fields}}} at {age:?}"
            );
        }
    }

    #[test]
    fn only_the_configured_models_decide() {
        let only_a = Rules {
            models: Some(BTreeSet::from(["a".to_owned()])),
            ..rules()
        };
        let judged = |state: &str| {
            let fields = format!(r#""category":"professional","fine_tuning":{{"state":{state}}}"#);
            judge(&voice(&fields), YOUNG, &only_a)
        };
        assert_eq!(
            judged(r#"{"a":"fine_tuning","b":"fine_tuned"}"#),
            Verdict::Processing(Stage::Training)
        );
        assert_eq!(
            judged(r#"{"a":"failed","b":"fine_tuned"}"#),
            Verdict::Failed(Failure::Training(None))
        );
        assert_eq!(
            judged(r#"{"b":"fine_tuned"}"#),
            Verdict::Processing(Stage::WaitingForOwner)
        );
        assert_eq!(judged(r#"{"a":"fine_tuned","b":"failed"}"#), done(None));
    }

    #[test]
    fn timeout_can_complete_a_voice_or_be_disabled() {
        let complete = Rules {
            age_from: AgeFrom::default(),
            on_timeout: OnTimeout::Complete,
            ..rules()
        };
        assert_eq!(judge(&voice(""), OLD, &complete), done(None));
        let never = Rules {
            fail_after: None,
            ..rules()
        };
        assert_eq!(
            judge(&voice(""), Duration::MAX, &never),
            Verdict::Processing(Stage::Preparing)
        );
    }

    #[test]
    fn preview_that_cannot_be_stored_whole_is_rejected() {
        let long = format!("https://x/{}", "p".repeat(1014));
        assert_eq!(storable(&long, Some(1024)), Ok(()));
        assert_eq!(
            storable(&format!("{long}p"), Some(1024)),
            Err(Unstorable::TooLong {
                chars: 1025,
                room: 1024
            })
        );
        assert_eq!(storable(&format!("{long}p"), None), Ok(()));
        assert_eq!(
            storable("https://x/\0", None),
            Err(Unstorable::ControlCharacter('\0'))
        );
        assert_eq!(
            storable("https://x/\n", None),
            Err(Unstorable::ControlCharacter('\n'))
        );
        for text in [
            "/p.mp3",
            "x/p.mp3",
            "ftp://x/p",
            "javascript:alert(1)",
            "http://",
            "https:x",
            " https://x",
            "https://x/a b",
            "data:audio/mp3,a",
        ] {
            assert_eq!(storable(text, None), Err(Unstorable::NotAUrl), "{text}");
        }
    }

    fn any_voice() -> impl Strategy<Value = Voice> {
        let state = prop::sample::select(vec![
            "not_started",
            "queued",
            "fine_tuning",
            "fine_tuned",
            "failed",
            "delayed",
            "new",
        ]);
        (
            prop::option::of(prop::sample::select(vec!["cloned", "professional", "generated", "x"])),
            prop::option::of("https://[a-z]{1,8}/[a-z]{0,8}"),
            prop::collection::btree_map("[ab]", state, 0..3),
            prop::option::of((any::<bool>(), any::<bool>())),
            prop::option::of(prop::sample::select(vec!["NONE", "BAN", "CAPTCHA", "X"])),
        )
            .prop_map(|(category, preview, states, verification, safety)| {
                serde_json::from_value(serde_json::json!({
                    "voice_id": "v", "category": category, "preview_url": preview,
                    "fine_tuning": {"state": states},
                    "voice_verification": verification.map(|(r, v)| serde_json::json!({"requires_verification": r, "is_verified": v})),
                    "safety_control": safety,
                }))
                .expect("a voice")
            })
    }

    proptest! {
        /// A higher age changes the verdict only of a voice that was still undecided, and never of a professional
        /// voice.
        #[test]
        fn age_decides_only_undecided_voices(voice in any_voice(), young in 0u64..86_400, extra in 0u64..1_000_000) {
            let before = judge(&voice, Duration::from_secs(young), &rules());
            let after = judge(&voice, Duration::from_secs(young + extra), &rules());
            if before != after {
                prop_assert!(matches!(before, Verdict::Processing(_)));
                prop_assert_eq!(after, Verdict::Failed(Failure::TimedOut));
                prop_assert_ne!(voice.category, Some(Category::Professional));
            }
        }

        /// A preview is stored exactly as the provider sent it.
        #[test]
        fn preview_is_stored_unchanged(voice in any_voice()) {
            if let Verdict::Completed { preview_url } = judge(&voice, YOUNG, &rules()) {
                prop_assert_eq!(preview_url.as_deref(), voice.preview());
            }
        }

        #[test]
        fn checking_any_preview_text_never_panics(text in any::<String>(), room in prop::option::of(0usize..64)) {
            if storable(&text, room).is_ok() {
                prop_assert!(text.to_ascii_lowercase().starts_with("http"));
            }
        }
    }
}
