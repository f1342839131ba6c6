use std::time::Duration;

use uuid::Uuid;

use chrono::DateTime;

use super::*;
use crate::core::backlog::Backlog;
use crate::core::provider_state::ProviderState;
use crate::store::Nudging;

const HOUR: Duration = Duration::from_secs(3600);

fn pass(minutes_ago: u64, exit_code: u8) -> LedgerEntry {
    let at = DateTime::UNIX_EPOCH + 1000 * HOUR - Duration::from_secs(60 * minutes_ago);
    LedgerEntry {
        run_id: Uuid::nil(),
        command: None,
        started_at: at,
        finished_at: at,
        duration: Duration::from_millis(80),
        exit_code,
        counts: json!({"due": 3, "completed": 2, "processing": 1, "requests": 1}),
    }
}

fn survey(kind: BacklogKind, age: Duration) -> Survey {
    survey_of(kind, age, HOUR)
}

/// `unasked` is for how long it has had no answer: a pass that succeeded lately is as good.
fn survey_of(kind: BacklogKind, age: Duration, unasked: Duration) -> Survey {
    let mut backlog = Backlog::default();
    backlog.add(kind, 7, 1, age, unasked);
    Survey {
        read_at: DateTime::UNIX_EPOCH + 1000 * HOUR,
        has_own_tables: true,
        backlog,
        runs: vec![pass(1, 0)],
        ..Survey::default()
    }
}

fn account(state: ProviderState) -> Vec<Account> {
    vec![Account {
        account: Uuid::nil(),
        state,
        found_at: None,
        unlisted: Vec::new(),
        mass_absence_since: None,
        nudging: Nudging::default(),
        budget: Some((RequestBudget::one_in(Duration::from_secs(1)), 100)),
    }]
}

fn found(survey: Survey) -> Vec<String> {
    let status = Status::new(survey, &Limits::default());
    assert_eq!(status.severity().is_some(), !status.attention.is_empty());
    status.attention.into_iter().map(|item| item.says).collect()
}

#[test]
fn only_problems_need_attention() {
    let well = || survey(BacklogKind::Young, HOUR);
    let command = LedgerEntry {
        command: Some("retry".to_owned()),
        ..pass(0, 78)
    };
    // A daemon that has nothing to do makes no pass.
    let idle = Survey {
        runs: vec![pass(100, 75)],
        ..survey_of(BacklogKind::Young, HOUR, HOUR / 12)
    };
    let new = Survey {
        has_own_tables: false,
        runs: vec![],
        backlog: Backlog::default(),
        ..well()
    };
    for (survey, says) in [
        (well(), None),
        (new, Some("own tables are missing")),
        (idle, None),
        (survey(BacklogKind::Training, 100 * HOUR), None),
        (survey(BacklogKind::WaitingForOwner, 100 * HOUR), None),
        (survey(BacklogKind::Overdue, 47 * HOUR), None),
        (
            survey(BacklogKind::Overdue, 49 * HOUR),
            Some("neither in training"),
        ),
        (
            survey(BacklogKind::SetAside, HOUR),
            Some("1 voice is set aside"),
        ),
        (
            Survey {
                runs: vec![],
                ..well()
            },
            Some("no pass has run"),
        ),
        (
            Survey {
                runs: vec![],
                backlog: Backlog::default(),
                ..well()
            },
            None,
        ),
        (
            Survey {
                runs: vec![command.clone(), pass(1, 0)],
                ..well()
            },
            None,
        ),
        (
            Survey {
                runs: vec![command],
                ..well()
            },
            Some("no pass has run"),
        ),
        (
            Survey {
                runs: vec![pass(1, 75)],
                ..well()
            },
            Some("the last pass was 1 min ago and ended with 75"),
        ),
        (
            Survey {
                runs: vec![pass(1, 75), pass(2, 0)],
                ..well()
            },
            None,
        ),
        (
            Survey {
                runs: vec![pass(1, 75), pass(16, 0)],
                ..well()
            },
            Some("not been checked for 1 h"),
        ),
        (
            Survey {
                runs: vec![pass(16, 0)],
                backlog: Backlog::default(),
                ..well()
            },
            None,
        ),
        (
            Survey {
                runs: vec![pass(1, 77), pass(2, 0)],
                ..well()
            },
            Some("the key is refused"),
        ),
        (
            Survey {
                runs: vec![pass(1, 78), pass(2, 0)],
                ..well()
            },
            Some("ended with 78"),
        ),
        (
            Survey {
                pending_events: 2,
                oldest_event: Some(HOUR),
                ..well()
            },
            Some("2 events wait"),
        ),
        (
            Survey {
                pending_events: 2,
                oldest_event: Some(HOUR / 20),
                ..well()
            },
            None,
        ),
        (
            Survey {
                accounts: account(ProviderState::default()),
                ..well()
            },
            None,
        ),
        (
            Survey {
                accounts: account(ProviderState {
                    opened: 1,
                    open_for: HOUR,
                    ..ProviderState::default()
                }),
                ..well()
            },
            Some("for another 1 h"),
        ),
        (
            Survey {
                accounts: account(ProviderState {
                    opened: 1,
                    ..ProviderState::default()
                }),
                ..well()
            },
            Some("did not answer the last requests"),
        ),
    ] {
        let found = found(survey.clone());
        match says {
            None => assert!(found.is_empty(), "{found:?} in {survey:#?}"),
            Some(says) => assert!(
                found.len() == 1 && found[0].contains(says),
                "{says}: {found:?}"
            ),
        }
    }
}

#[test]
fn attention_uses_the_configured_limits() {
    let limits = Limits {
        backlog: Some(0),
        age: Duration::ZERO,
        set_aside: 1,
        silence: Duration::ZERO,
        event_age: Duration::ZERO,
    };
    let survey = Survey {
        oldest_event: Some(HOUR),
        ..survey(BacklogKind::Overdue, HOUR)
    };
    let says: Vec<_> = Status::new(survey, &limits)
        .attention
        .into_iter()
        .map(|item| item.says)
        .collect();
    assert_eq!(says.len(), 4, "{says:?}");
    assert!(says.iter().any(|says| says.contains("more than 0")));
}

fn full() -> Status {
    let mut survey = Survey {
        accounts: account(ProviderState {
            cooldown: HOUR,
            concurrency: Some(2.5),
            ..ProviderState::default()
        }),
        pending_events: 1,
        oldest_event: Some(HOUR),
        ..survey(BacklogKind::Missing, 50 * HOUR)
    };
    for seconds in 1..200 {
        survey.completion_times.add(Duration::from_secs(seconds));
    }
    survey.completion_times_by_kind =
        [("<b>odd\x1b[2J".to_owned(), survey.completion_times.clone())].into();
    let command = LedgerEntry {
        command: Some("<script>alert(1)</script>\x1b[2J".to_owned()),
        counts: json!({"put_back": 3}),
        ..pass(0, 0)
    };
    survey.runs.push(command);
    Status::new(survey, &Limits::default())
}

#[test]
fn status_names_a_sufficient_request_budget() {
    let with = |voices: u64| {
        let mut survey = Survey {
            accounts: account(ProviderState::default()),
            ..survey(BacklogKind::Young, HOUR)
        };
        survey
            .backlog
            .add(BacklogKind::Young, 1, voices - 1, HOUR, HOUR);
        Status::new(survey, &Limits::default())
    };
    let few = with(3000);
    assert!(text(&few, 80).contains("request budget 60/min, 100 voices per request: enough"));
    let many = with(100_000);
    let says = "looking up each of 100000 voices takes 16 min 40 s; for 5 min, --request-budget 200/min is enough";
    assert!(text(&many, 80).contains(says), "{}", text(&many, 80));
    assert!(page(Ok(&many), Nonce::random()).contains(says));
    let json = &many.json()["provider"][0]["request_budget"];
    assert_eq!(json["requests_per_minute"], 60.0);
    assert_eq!(json["enough_per_minute"], 200);
    let none = text(&Status::new(Survey::default(), &Limits::default()), 80);
    assert!(!none.contains("request budget"), "{none}");
}

#[test]
fn text_fits_its_width_and_contains_no_control_characters() {
    for width in [40, 80, 120] {
        let text = anstream::adapter::strip_str(&text(&full(), width)).to_string();
        let widest = text
            .lines()
            .filter(|line| line.starts_with(' ') && line.contains('█'));
        assert!(
            widest.map(|line| line.chars().count()).max() <= Some(width.into()),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "{text}");
        for part in [
            "1 voice in processing",
            "missing            1",
            "put",
            "p50",
            "concurrency limit 2.5",
            "<b>odd",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}

#[test]
fn page_escapes_foreign_text_and_loads_no_other_resource() {
    let nonce = Nonce::random();
    let page = page(Ok(&full()), nonce);
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
    assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
    for elsewhere in [" style=", "http", " src=", " href=", "url(", "@import"] {
        assert!(!page.contains(elsewhere), "{elsewhere} in {page}");
    }
    assert!(
        nonce.policy().contains(&format!("'nonce-{nonce}'")) && page.contains(&nonce.to_string())
    );
    assert_ne!(nonce.to_string(), Nonce::random().to_string());
}
