//! What the store promises, on every variant of the application's table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{NaiveDateTime, Utc};
use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;
use voice_sync::core::event::{EventType, OutboxEvent, event_id};
use voice_sync::core::provider_state::ProviderState;
use voice_sync::core::provider_state::Spent;
use voice_sync::core::quantiles::Quantiles;
use voice_sync::core::request_budget::Spending;
use voice_sync::core::transition::{Claimed, Note, Seen, SetAside, Target, Transition};
use voice_sync::core::verdict::{Age, AgeFrom, Stage};
use voice_sync::core::voice::{ProviderVoiceId, RowId};
use voice_sync::store::{
    BusPermit, CommandRun, EventFilter, Isolated, LeasedEvents, NextPass, Record, Run, Selection,
    Store, StoreError, VoiceFilter, Wanted,
};

use crate::support::app::{App, NewVoice, Pool, Variant, row_id, user_id};

/// The provider's account, for what is counted by account.
const ACCOUNT: Uuid = Uuid::from_u128(7);

const ALL: Selection = Selection::Range {
    after: None,
    up_to: None,
    except: Vec::new(),
};

async fn claim(store: &Store, run_id: Uuid) -> Vec<Claimed> {
    store.claim(run_id, &ALL, 100).await.expect("claims").voices
}

async fn lease_events(store: &Store, limit: u32) -> Vec<OutboxEvent> {
    store.lease_events(limit).await.expect("leases").events
}

/// Marks leased events as published. Returns their ids.
async fn settle_all(store: &Store, leased: &LeasedEvents) -> Vec<i64> {
    let published: Vec<_> = leased.events.iter().map(|event| event.id).collect();
    let settled = store.settle_events(leased, &published, &[]).await;
    settled.expect("settles");
    published
}

/// Ends all leases, as a pass does whose answers are written down.
async fn end_leases(app: &App) {
    app.execute(&format!("DELETE FROM {}", app.own("leases")))
        .await;
}

fn completed(app: &App, id: &str) -> Transition {
    let preview_url = Some(format!("https://x/{id}.mp3"));
    transition(app, id, Target::Completed { preview_url })
}

fn failed(app: &App, id: &str) -> Transition {
    transition(
        app,
        id,
        Target::Failed {
            reason: "banned".to_owned(),
        },
    )
}

fn transition(app: &App, id: &str, target: Target) -> Transition {
    Transition {
        row: RowId::new(app.stored(row_id(id))),
        provider_id: ProviderVoiceId::parse(id).expect("an id").into(),
        target,
    }
}

fn too_long() -> Seen {
    Seen::SetAside(SetAside::Refused("too long".into()))
}

fn note(app: &App, id: &str, seen: Seen) -> Note {
    Note {
        row: RowId::new(app.stored(row_id(id))),
        provider_id: Some(id.to_owned()),
        seen,
        again_in: Duration::from_secs(5),
    }
}

async fn every_processing_voice_is_claimed_once_page_by_page(variant: Variant) {
    let app = App::new(variant).await;
    let ids: Vec<String> = (0..25).map(|n| format!("v{n}")).collect();
    let mut voices: Vec<_> = ids.iter().map(NewVoice::processing).collect();
    voices.push(NewVoice {
        status: "completed",
        ..NewVoice::processing("done")
    });
    voices.push(NewVoice {
        status: "failed",
        ..NewVoice::processing("over")
    });
    app.insert(&voices).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store
            .claim(
                run_id,
                &Selection::Range {
                    after,
                    up_to: None,
                    except: Vec::new(),
                },
                10,
            )
            .await
            .expect("claims");
        seen.extend(
            page.voices
                .into_iter()
                .filter_map(|voice| voice.provider_id),
        );
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 25);
    assert_eq!(
        seen.into_iter().collect::<BTreeSet<_>>(),
        ids.into_iter().collect()
    );

    let all = store.count(&ALL).await.expect("counts");
    assert_eq!(all, 25);
}

/// The application may delete the row at which a pass stopped: the pass continues after it.
async fn walk_continues_after_a_deleted_row(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["r1", "r2", "r3", "r4"]).await;
    let (store, run_id) = (app.store().await, Uuid::new_v4());
    let page = store.claim(run_id, &ALL, 2).await.expect("claims");
    let mut rows: BTreeSet<_> = page.voices.into_iter().map(|voice| voice.row).collect();
    for row in &rows {
        app.execute(&format!("DELETE FROM voices WHERE id = '{row}'"))
            .await;
    }
    let behind = Selection::Range {
        after: page.last,
        up_to: None,
        except: Vec::new(),
    };
    let page = store.claim(run_id, &behind, 100).await.expect("claims");
    assert_eq!(page.voices.len(), 2);
    rows.extend(page.voices.into_iter().map(|voice| voice.row));
    assert_eq!(rows.len(), 4);
}

async fn leased_voice_belongs_to_one_pass_until_the_lease_ends(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b"]).await;
    let store = app.store().await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(claim(&store, first).await.len(), 2);

    let page = store.claim(second, &ALL, 100).await.expect("claims");
    assert_eq!((page.voices.len(), page.leased_elsewhere), (0, 2));
    assert_eq!(
        claim(&store, first).await.len(),
        2,
        "a repeated claim finds its own"
    );

    app.age_own_tables(59).await;
    assert_eq!(claim(&store, second).await.len(), 0);
    app.age_own_tables(61).await;
    let page = store.claim(second, &ALL, 100).await.expect("claims");
    assert_eq!((page.voices.len(), page.reclaimed), (2, 2));
    let lease = page.lease.expect("a lease");

    // The first one's notes come too late and change nothing.
    store
        .note(first, ACCOUNT, &[note(&app, "a", Seen::Missing)])
        .await
        .expect("notes");
    let missing = format!(
        "SELECT count(*) FROM {} WHERE missing_count > 0",
        app.own("voices")
    );
    assert_eq!(app.number(&missing).await, 0);
    let away = |id| note(&app, id, Seen::Unavailable("503".into()));
    let notes = [away("a"), away("b")];
    store.note(second, ACCOUNT, &notes).await.expect("notes");
    assert_eq!(claim(&store, first).await.len(), 0);
    store.end_leases(&[lease]).await.expect("ends");
    assert_eq!(claim(&store, first).await.len(), 2, "it is free at once");
}

async fn completion_writes_three_columns_and_one_event(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let applied = store
        .apply(run_id, &[completed(&app, "a")], Record::ForMe)
        .await
        .expect("applies");

    let row = app.row("a").await;
    assert_eq!(row.status, "completed");
    assert_eq!(row.preview_url.as_deref(), Some("https://x/a.mp3"));
    let completed_at = row.completed_at.expect("it is set");
    let form = "%Y-%m-%d %H:%M:%S%.f";
    let moment = NaiveDateTime::parse_from_str(completed_at.trim_end_matches("+00"), form)
        .expect(&completed_at);
    let off = (Utc::now().naive_utc() - moment).num_seconds().abs();
    assert!(off < 60, "{completed_at} is UTC");
    assert_eq!(app.row("b").await.status, "processing");

    let [event] = &applied.events[..] else {
        panic!("one event, not {:?}", applied.events)
    };
    let provider_id = ProviderVoiceId::parse("a").expect("an id");
    let row = RowId::new(app.stored(row_id("a")));
    assert_eq!(
        event.event_id,
        event_id(&row, &provider_id, EventType::VoiceCreated)
    );
    assert_eq!(event.voice_id, row_id("a").hyphenated().to_string());
    assert_eq!(event.user_id, Some(user_id("a").hyphenated().to_string()));
    assert_eq!(event.event_type, EventType::VoiceCreated);
    assert!(
        lease_events(&store, 10).await.is_empty(),
        "it is leased to its recorder"
    );
    let known = format!("SELECT count(*) FROM {}", app.own("voices"));
    assert_eq!(
        app.number(&known).await,
        0,
        "a voice that the first pass completes leaves no trace"
    );
}

async fn failure_writes_only_the_status_column(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let applied = store
        .apply(run_id, &[failed(&app, "a")], Record::ForAnyone)
        .await
        .expect("applies");
    let row = app.row("a").await;
    assert_eq!(
        (row.status.as_str(), row.preview_url, row.completed_at),
        ("failed", None, None)
    );
    assert_eq!(applied.events[0].event_type, EventType::VoiceUpdated);
    let why = format!(
        "SELECT count(*) FROM {} WHERE failure = 'banned'",
        app.own("voices")
    );
    assert_eq!(app.number(&why).await, 1, "why it failed is kept");
    assert_eq!(
        lease_events(&store, 10).await.len(),
        1,
        "anyone may publish it"
    );
}

async fn application_changes_win_over_a_transition(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["recloned", "failed", "completed", "deleted", "kept"])
        .await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    app.execute(
        "UPDATE voices SET elevenlabs_voice_id = 'new' WHERE elevenlabs_voice_id = 'recloned'",
    )
    .await;
    app.execute("UPDATE voices SET status = 'failed' WHERE elevenlabs_voice_id = 'failed'")
        .await;
    app.execute("UPDATE voices SET status = 'completed' WHERE elevenlabs_voice_id = 'completed'")
        .await;
    app.execute("DELETE FROM voices WHERE elevenlabs_voice_id = 'deleted'")
        .await;
    let before = app.rows().await;
    let stale: Vec<_> = ["recloned", "failed", "deleted"]
        .iter()
        .map(|id| completed(&app, id))
        .chain([failed(&app, "completed"), completed(&app, "kept")])
        .collect();
    let applied = store
        .apply(run_id, &stale, Record::ForMe)
        .await
        .expect("applies");
    assert_eq!(applied.moved.len(), 1);
    assert_eq!(applied.events.len(), 1);
    let mut after = app.rows().await;
    assert_eq!(
        after.remove("kept").map(|row| row.status).as_deref(),
        Some("completed")
    );
    assert!(
        after.iter().all(|(id, row)| before.get(id) == Some(row)),
        "{after:?}"
    );

    let others = store
        .apply(Uuid::new_v4(), &stale, Record::ForMe)
        .await
        .expect("applies");
    assert!(
        others.moved.is_empty() && others.events.is_empty(),
        "a transition happens once"
    );
    let again = store
        .apply(run_id, &stale, Record::ForMe)
        .await
        .expect("applies");
    assert_eq!(again, applied, "whoever lost the reply gets it again");
    let events = format!("SELECT count(*) FROM {}", app.own("outbox"));
    assert_eq!(app.number(&events).await, 1);
}

async fn only_one_process_retries_a_failed_bus(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let bus = Uuid::new_v4();
    let run = Uuid::new_v4();
    let turn = async || store.bus_permit(bus, Uuid::new_v4()).await.expect("tells");
    let failed = async |failures, seconds| {
        let pause = Duration::from_secs(seconds);
        let told = store.bus_failed(bus, failures, pause).await;
        told.expect("is told");
    };
    assert_eq!(turn().await, BusPermit::Works);
    failed(1, 30).await;
    failed(1, 50).await;
    let BusPermit::BackingOff(pause) = turn().await else {
        panic!("it just failed");
    };
    assert!(
        pause <= Duration::from_secs(30),
        "of two, one counts: {pause:?}"
    );
    assert_eq!(
        store.bus_permit(Uuid::new_v4(), run).await.expect("tells"),
        BusPermit::Works
    );

    app.age_own_tables(31).await;
    let probe = BusPermit::Probe { failures: 1 };
    assert_eq!(store.bus_permit(bus, run).await.expect("tells"), probe);
    let again = store.bus_permit(bus, run).await.expect("tells");
    assert_eq!(again, probe, "whoever lost the reply is told again");
    assert!(
        matches!(turn().await, BusPermit::BackingOff(_)),
        "somebody tries"
    );
    failed(2, 60).await;
    app.age_own_tables(31).await;
    assert!(matches!(turn().await, BusPermit::BackingOff(_)));
    app.age_own_tables(31).await;
    assert_eq!(turn().await, BusPermit::Probe { failures: 2 });
    store.bus_works(bus).await.expect("is told");
    assert_eq!(turn().await, BusPermit::Works);
}

async fn refused_transition_records_no_event(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["good", "bad"]).await;
    let constraint = "elevenlabs_voice_id <> 'bad' OR status <> 'completed'";
    match &app.pool {
        Pool::Postgres(_) => {
            let text = constraint.replace("status", "status::text");
            app.execute(&format!("ALTER TABLE voices ADD CHECK ({text})"))
                .await;
        }
        // As a full disk does, it undoes the whole transaction by itself.
        Pool::Sqlite(_) => {
            app.execute(
                "CREATE TRIGGER picky BEFORE UPDATE ON voices
                 WHEN NEW.elevenlabs_voice_id = 'bad' AND NEW.status = 'completed'
                 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
            )
            .await;
        }
    }
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let both = [completed(&app, "good"), completed(&app, "bad")];
    let refused = store.apply(run_id, &both, Record::ForMe).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    assert_eq!(app.row("good").await.status, "processing");
    assert_eq!(
        store.pending_events(None).await.expect("counts").all,
        0,
        "no event without its transition"
    );
    let applied = store
        .apply(run_id, &both[..1], Record::ForMe)
        .await
        .expect("applies");
    assert_eq!(applied.moved.len(), 1);
}

/// A pass may see a voice twice if the row at which it stopped is deleted.
async fn duplicate_transition_is_applied_once(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["twice", "never"]).await;
    let (store, run_id) = (app.store().await, Uuid::new_v4());
    claim(&store, run_id).await;
    let twice = [
        completed(&app, "twice"),
        failed(&app, "never"),
        completed(&app, "twice"),
        failed(&app, "never"),
    ];
    let applied = store.apply(run_id, &twice, Record::ForMe).await;
    let applied = applied.expect("applies");
    assert_eq!((applied.moved.len(), applied.events.len()), (2, 2));
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!(pending.all, 2);

    app.insert_processing(&["renewed"]).await;
    claim(&store, run_id).await;
    let new = completed(&app, "renewed");
    let old = Transition {
        provider_id: ProviderVoiceId::parse("cloned-before")
            .expect("an id")
            .into(),
        ..failed(&app, "renewed")
    };
    let applied = store
        .apply(run_id, &[old, new.clone()], Record::ForMe)
        .await;
    let events = applied.expect("applies").events;
    let said: Vec<_> = events.iter().map(|event| event.event_type).collect();
    assert_eq!(said, [EventType::VoiceCreated]);
}

async fn notes_of_a_pass_are_remembered(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["waits", "gone", "away"]).await;
    let store = app.store().await;
    let account = ACCOUNT;
    for round in 1..=3 {
        let run_id = Uuid::new_v4();
        assert_eq!(claim(&store, run_id).await.len(), 3);
        let processing = Seen::Processing {
            kind: "professional".into(),
            stage: Stage::Training,
        };
        let notes = [
            note(&app, "waits", processing),
            note(&app, "gone", Seen::Missing),
            note(
                &app,
                "away",
                if round == 1 {
                    Seen::Missing
                } else {
                    Seen::Unavailable("timeout".into())
                },
            ),
        ];
        store.note(run_id, ACCOUNT, &notes).await.expect("notes");
        end_leases(&app).await;
        app.age_own_tables(10).await;

        let missing = store
            .missing(run_id, account, None, 10)
            .await
            .expect("lists");
        let names: BTreeSet<_> = missing
            .iter()
            .map(|voice| voice.provider_id.as_str())
            .collect();
        let asked = if round == 1 {
            BTreeSet::from(["away", "gone"])
        } else {
            BTreeSet::from(["gone"])
        };
        assert_eq!(names, asked, "only those asked about in this pass");
        let gone = missing
            .iter()
            .find(|voice| voice.provider_id == "gone")
            .expect("it is there");
        assert_eq!(gone.times, round);
        assert!(
            gone.lasting >= Duration::from_secs(10) * round
                && gone.lasting < Duration::from_secs(120)
        );
        assert_eq!(gone.last_found, None);
    }
    let run = Run {
        account: Some(account),
        found: 1,
        ..ledger_entry()
    };
    store.record_run(&run).await.expect("records");
    let run_id = Uuid::new_v4();
    let kinds: Vec<_> = claim(&store, run_id)
        .await
        .into_iter()
        .map(|voice| (voice.provider_id, voice.kind))
        .collect();
    assert!(
        kinds.contains(&(Some("waits".into()), Some("professional".into()))),
        "{kinds:?}"
    );
    store
        .note(run_id, ACCOUNT, &[note(&app, "gone", Seen::Missing)])
        .await
        .expect("notes");
    let missing = store
        .missing(run_id, account, None, 10)
        .await
        .expect("lists");
    let found = missing[0]
        .last_found
        .expect("another pass found voices meanwhile");
    assert!(found < missing[0].lasting, "{missing:?}");
    let other = store
        .missing(run_id, Uuid::new_v4(), None, 10)
        .await
        .expect("lists");
    assert_eq!(other[0].last_found, None, "but with another key");
}

async fn absences_are_counted_per_key(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["gone"]).await;
    let store = app.store().await;
    for (account, times) in [(1, 1), (1, 2), (2, 1), (1, 1)] {
        let (run_id, account) = (Uuid::new_v4(), Uuid::from_u128(account));
        claim(&store, run_id).await;
        let notes = [note(&app, "gone", Seen::Missing)];
        store.note(run_id, account, &notes).await.expect("notes");
        end_leases(&app).await;
        app.age_own_tables(10).await;
        let missing = store
            .missing(run_id, account, None, 10)
            .await
            .expect("lists");
        assert_eq!(missing[0].times, times);
        assert!(missing[0].lasting >= Duration::from_secs(10) * times);
        assert!(missing[0].lasting < Duration::from_secs(10) * (times + 1));
    }
}

async fn cloning_again_resets_the_absence(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["gone"]).await;
    let store = app.store().await;
    for clone in ["gone", "gone2", "gone3"] {
        app.execute(&format!(
            "UPDATE voices SET elevenlabs_voice_id = '{clone}'"
        ))
        .await;
        for times in 1..=2 {
            let run_id = Uuid::new_v4();
            claim(&store, run_id).await;
            let notes = [Note {
                provider_id: Some(clone.to_owned()),
                ..note(&app, "gone", Seen::Missing)
            }];
            store.note(run_id, ACCOUNT, &notes).await.expect("notes");
            end_leases(&app).await;
            app.age_own_tables(10).await;
            let missing = store.missing(run_id, ACCOUNT, None, 10).await;
            let missing = missing.expect("lists");
            assert_eq!((missing.len(), missing[0].times), (1, times), "{clone}");
            let lasting = Duration::from_secs(10) * times;
            assert!(missing[0].lasting >= lasting, "{clone}: {missing:?}");
            assert!(
                missing[0].lasting < lasting + Duration::from_secs(9),
                "{clone}: {missing:?}"
            );
        }
    }
}

async fn unanswerable_voices_are_isolated_and_then_quarantined(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["good", "bad", "suspect"]).await;
    let store = app.store().await;
    let isolated = async || store.isolated(Uuid::nil(), 10).await.expect("reads");
    let unanswerable = |times| Seen::Unanswerable {
        reason: "HTTP 500".into(),
        times,
    };
    let run_id = Uuid::new_v4();
    assert_eq!(claim(&store, run_id).await.len(), 3);
    let notes = [
        note(&app, "good", Seen::Unavailable("HTTP 500".into())),
        note(&app, "bad", unanswerable(1)),
        note(&app, "suspect", Seen::Suspected("no time left".into())),
    ];
    store.note(run_id, ACCOUNT, &notes).await.expect("notes");
    end_leases(&app).await;
    let memory = store.load_state(ACCOUNT).await.expect("reads");
    assert!(memory.any_isolated, "the next pass is told");
    assert_eq!(
        claim(&store, Uuid::new_v4()).await.len(),
        1,
        "a walk leaves them out"
    );
    app.age_own_tables(61).await;
    let Isolated { rows, new, read_at } = isolated().await;
    assert_eq!((rows.len(), new), (2, 1));
    assert_eq!(
        rows[0],
        RowId::new(app.stored(row_id("suspect"))),
        "the new one first"
    );
    assert_eq!(
        store.isolated(run_id, 10).await.expect("reads").rows.len(),
        0,
        "not again in the same pass"
    );

    // One is answered, the other one is not, again.
    let rows: Vec<_> = rows.iter().map(|row| row.as_str().to_owned()).collect();
    let due = Selection::Due { rows, read_at };
    let second = Uuid::new_v4();
    let page = store.claim(second, &due, 10).await.expect("claims");
    let unanswered: Vec<_> = page
        .voices
        .iter()
        .map(|voice| (voice.is_isolated, voice.unanswered))
        .collect();
    assert_eq!(
        unanswered
            .iter()
            .map(|(isolated, _)| *isolated)
            .collect::<Vec<_>>(),
        [true, true]
    );
    assert_eq!(unanswered.iter().map(|(_, times)| times).sum::<u32>(), 1);
    let processing = Seen::Processing {
        kind: "cloned".into(),
        stage: Stage::Preparing,
    };
    let mut notes = [
        note(&app, "suspect", processing),
        note(&app, "bad", unanswerable(2)),
    ];
    notes[1].again_in = Duration::from_secs(60);
    store.note(second, ACCOUNT, &notes).await.expect("notes");
    end_leases(&app).await;
    assert!(isolated().await.rows.is_empty(), "quarantined");
    let everyone = Selection::Range {
        after: None,
        up_to: None,
        except: Vec::new(),
    };
    let page = store
        .claim(Uuid::new_v4(), &everyone, 10)
        .await
        .expect("claims");
    assert_eq!((page.voices.len(), page.quarantined), (2, 1));
    app.age_own_tables(61).await;
    assert_eq!(isolated().await.rows.len(), 1, "its time is over");

    // A new clone is another voice.
    app.execute("UPDATE voices SET elevenlabs_voice_id = 'new' WHERE elevenlabs_voice_id = 'bad'")
        .await;
    let page = store
        .claim(Uuid::new_v4(), &everyone, 10)
        .await
        .expect("claims");
    assert_eq!(page.voices.len(), 3);
    assert!(
        page.voices
            .iter()
            .all(|voice| !voice.is_isolated && voice.unanswered == 0),
        "{page:?}"
    );
}

async fn events_refused_by_the_bus_come_last(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c", "d"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let first = [completed(&app, "a"), completed(&app, "b")];
    let second = [completed(&app, "c"), completed(&app, "d")];
    for batch in [&first, &second] {
        let applied = store.apply(run_id, batch, Record::ForAnyone).await;
        assert_eq!(applied.expect("applies").moved.len(), 2);
    }
    let leased = store.lease_events(2).await.expect("leases");
    let ids: Vec<i64> = leased.events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), 2, "whole batches, as many as have room");
    store
        .settle_events(&leased, &ids[..1], &ids[1..])
        .await
        .expect("settles");
    assert_eq!(store.pending_events(None).await.expect("counts").all, 3);
    let rest = lease_events(&store, 2).await;
    assert_eq!(rest.len(), 2);
    assert!(
        rest.iter().all(|event| !ids.contains(&event.id)),
        "the others come first"
    );
    app.age_own_tables(1).await;
    let refused = lease_events(&store, 10).await;
    assert_eq!(refused.len(), 1);
    let same = OutboxEvent {
        batch: leased.events[1].batch,
        ..refused[0].clone()
    };
    assert_eq!(same, leased.events[1], "it is the same event, to the byte");
}

/// A daemon starts a pass for events that can be published now and for voices that are due, new voices first.
async fn agenda_contains_only_what_can_be_done_now(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c"]).await;
    let store = app.store().await;
    let (run_id, bus) = (Uuid::new_v4(), Uuid::new_v4());
    let agenda = async || store.agenda(10, Some(bus), None).await.expect("reads");
    assert!(!agenda().await.events_wait);
    claim(&store, run_id).await;
    let record = Record::ForAnyone;
    store
        .apply(run_id, &[completed(&app, "a")], record)
        .await
        .expect("applies");
    assert!(!agenda().await.events_wait, "its recorder publishes it");
    app.age_own_tables(31).await;
    assert!(agenda().await.events_wait);
    let leased = store.lease_events(1).await.expect("leases");
    assert!(!agenda().await.events_wait, "somebody publishes it");
    let refused = [leased.events[0].id];
    let settled = store.settle_events(&leased, &[], &refused).await;
    settled.expect("settles");
    assert!(!agenda().await.events_wait, "it was refused just now");
    app.age_own_tables(16).await;
    assert!(agenda().await.events_wait);
    let pause = Duration::from_secs(30);
    store.bus_failed(bus, 1, pause).await.expect("is told");
    assert!(!agenda().await.events_wait, "the bus is left alone");
    let other = store.agenda(10, Some(Uuid::new_v4()), None).await;
    assert!(other.expect("reads").events_wait, "another bus is not");
    app.age_own_tables(31).await;
    assert!(agenda().await.events_wait);

    // Both were claimed, and their leases are over; then one is asked about, and overdue; and a third one comes.
    app.age_own_tables(61).await;
    let all = claim(&store, run_id).await;
    assert_eq!(all.len(), 2);
    let notes = [note(
        &app,
        "b",
        Seen::Processing {
            kind: "cloned".into(),
            stage: Stage::Preparing,
        },
    )];
    store
        .note(run_id, Uuid::nil(), &notes)
        .await
        .expect("notes");
    app.age_own_tables(600).await;
    app.insert_processing(&["d"]).await;
    let asked = RowId::new(app.stored(row_id("b")));
    let mut due = agenda().await;
    assert_eq!(due.voices.len(), 1, "{due:?}");
    assert_eq!(
        (&due.voices[0].row, due.voices[0].due_in),
        (&asked, Duration::ZERO)
    );
    let unscheduled = store.unscheduled(10, None).await.expect("reads");
    assert_eq!(unscheduled.len(), 2, "{unscheduled:?}");
    assert_eq!(store.unscheduled(1, None).await.expect("reads").len(), 1);
    due.begin_with(unscheduled, 10);
    assert_eq!(due.voices[2].row, asked, "who was asked about comes last");
    due.begin_with(Vec::new(), 2);
    assert!(due.voices.iter().all(|voice| voice.row != asked));

    // Whoever is claimed, set aside or gone is neither; and no rows of other tables are.
    let all = store.claim(Uuid::new_v4(), &ALL, 10).await.expect("claims");
    assert_eq!(all.voices.len(), 3);
    assert_eq!(agenda().await.voices.len(), 0);
    assert_eq!(
        store.unscheduled(10, None).await.expect("reads"),
        Vec::new()
    );
    app.age_own_tables(61).await;
    app.execute(&format!(
        "UPDATE {} SET row_id = 'another' WHERE row_id = '{}'",
        app.own("voices"),
        asked.as_str()
    ))
    .await;
    assert_eq!(agenda().await.voices.len(), 0);
    assert_eq!(store.unscheduled(10, None).await.expect("reads").len(), 3);
}

/// All processes wait for what one of them spent; if two spend at the same time, all wait for both.
async fn all_processes_share_the_request_budget(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let seconds = Duration::from_secs;
    let budget_in = async |account| {
        let agenda = store.agenda(1, None, Some(account)).await;
        agenda.expect("reads").budget_in
    };
    assert_eq!(budget_in(ACCOUNT).await, Duration::ZERO);
    let spend = async |ago, taken| {
        let run = Run {
            account: Some(ACCOUNT),
            duration: seconds(ago),
            spending: Some(Spending {
                budget: "120/min".parse().expect("a budget"),
                taken: seconds(taken),
                voices_a_request: 100,
            }),
            ..ledger_entry()
        };
        store.record_run(&run).await.expect("records");
    };
    let is_about = |left: Duration, least: u64, most: u64| {
        assert!(left > seconds(least) && left <= seconds(most), "{left:?}");
    };
    spend(0, 100).await;
    is_about(budget_in(ACCOUNT).await, 40, 100);
    spend(0, 100).await;
    is_about(budget_in(ACCOUNT).await, 140, 200);
    assert_eq!(budget_in(Uuid::from_u128(8)).await, Duration::ZERO);
    spend(0, 1000).await;
    is_about(budget_in(ACCOUNT).await, 240, 300);
    app.age_own_tables(500).await;
    assert_eq!(budget_in(ACCOUNT).await, Duration::ZERO);

    // What took longer than the budget needed is paid for when it ends.
    spend(100, 100).await;
    assert_eq!(budget_in(ACCOUNT).await, Duration::ZERO);
    app.age_own_tables(500).await;
    spend(40, 140).await;
    is_about(budget_in(ACCOUNT).await, 40, 100);

    // A pass without a budget leaves it as it is.
    let run = Run {
        account: Some(ACCOUNT),
        ..ledger_entry()
    };
    store.record_run(&run).await.expect("records");
    is_about(budget_in(ACCOUNT).await, 40, 100);
    let survey = store.survey(None, AgeFrom::FirstSeen, 1, 1, None).await;
    let budget = "120/min".parse().expect("a budget");
    assert_eq!(
        survey.expect("reads").accounts[0].budget,
        Some((budget, 100))
    );

    // The database's clock was set back by a day.
    app.age_own_tables(-86_400).await;
    assert_eq!(budget_in(ACCOUNT).await, Duration::ZERO);
    spend(0, 100).await;
    is_about(budget_in(ACCOUNT).await, 40, 100);
}

/// A hint takes effect at once, and the next one for the same voice after five seconds, however many there are: a hint
/// that arrives during a lookup may be newer than its answer.
async fn hint_makes_a_voice_due_at_most_once_in_five_seconds(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["known", "new", "odd", "other"])
        .await;
    let done = NewVoice {
        status: "completed",
        ..NewVoice::processing("done")
    };
    app.insert(&[done]).await;
    let store = app.store().await;
    let seconds = Duration::from_secs;
    let processing = || Seen::Processing {
        kind: "cloned".into(),
        stage: Stage::Preparing,
    };
    let unanswerable = || Seen::Unanswerable {
        reason: "HTTP 500".into(),
        times: 3,
    };
    let look_up = async |names: &[(&str, Seen)]| {
        let run_id = Uuid::new_v4();
        claim(&store, run_id).await;
        let notes = names.iter().map(|(id, seen)| Note {
            again_in: seconds(60),
            ..note(&app, id, seen.clone())
        });
        let notes: Vec<_> = notes.collect();
        let noted = store.note(run_id, ACCOUNT, &notes).await;
        noted.expect("notes");
        end_leases(&app).await;
    };
    // Those that a hint made due, in so many whole seconds, rounded up.
    let hinted = async || {
        let agenda = store.agenda(100, None, None).await.expect("reads");
        let voices = agenda.voices.into_iter().filter(|voice| voice.is_hinted);
        let mut voices: Vec<_> = voices
            .map(|voice| {
                (
                    voice.row.as_str().to_owned(),
                    voice.due_in.as_secs_f64().ceil() as u64,
                )
            })
            .collect();
        voices.sort();
        voices
    };
    let hint = async |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        store.hint(&names).await.expect("is noted").voices
    };
    let row = |id: &str| app.stored(row_id(id));
    let sorted = |mut voices: Vec<(String, u64)>| {
        voices.sort();
        voices
    };

    look_up(&[
        ("known", processing()),
        ("odd", unanswerable()),
        ("other", processing()),
    ])
    .await;
    assert_eq!(hinted().await, []);
    let of_new = row_id("new").to_string();
    let names = [
        "known",
        of_new.as_str(),
        "odd",
        "nobody",
        "done",
        "\0'\"",
        "",
    ];
    assert_eq!(hint(&names).await, 3);
    let all = sorted(vec![(row("known"), 0), (row("new"), 0), (row("odd"), 0)]);
    assert_eq!(hinted().await, all);
    hint(&names).await;
    assert_eq!(hinted().await, all);

    // While it is being looked up, any number of further ones count once, later.
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    for _ in 0..3 {
        hint(&["known"]).await;
    }
    let noted = [note(&app, "known", processing())];
    let noted = store.note(run_id, ACCOUNT, &noted).await;
    noted.expect("notes");
    end_leases(&app).await;
    assert!(hinted().await.contains(&(row("known"), 5)));
    hint(&["known"]).await;
    assert!(hinted().await.contains(&(row("known"), 5)));
    app.age_own_tables(8).await;
    assert!(hinted().await.contains(&(row("known"), 0)));

    // An answer that is newer than the hint is what it wanted. (A walk leaves the isolated voice out.)
    look_up(&[("known", processing()), ("new", processing())]).await;
    assert_eq!(hinted().await, [(row("odd"), 0)]);
    app.age_own_tables(2).await;
    hint(&["known", "new", "other"]).await;
    let all = ["known", "new", "odd", "other"].map(|id| (row(id), 0));
    assert_eq!(hinted().await, sorted(all.to_vec()));
    look_up(&[("known", processing())]).await;
    hint(&["known"]).await;
    assert!(hinted().await.contains(&(row("known"), 5)));

    // Who had no answer is still to be asked, but not for ever.
    let unavailable = || Seen::Unavailable("away".to_owned());
    look_up(&[("other", unavailable())]).await;
    assert!(hinted().await.contains(&(row("other"), 0)));
    app.age_own_tables(301).await;
    look_up(&[("other", unavailable())]).await;
    assert!(
        !hinted()
            .await
            .iter()
            .any(|(hinted, _)| *hinted == row("other"))
    );
    // One that is in trouble is left alone for longer.
    hint(&["other"]).await;
    look_up(&[("other", too_long())]).await;
    app.age_own_tables(10).await;
    hint(&["other"]).await;
    assert!(hinted().await.contains(&(row("other"), 290)));

    // The clock is set back by a day: an old hint is none.
    look_up(&[("known", processing()), ("new", processing())]).await;
    app.age_own_tables(-86_400).await;
    hint(&["known"]).await;
    assert!(hinted().await.contains(&(row("known"), 0)));

    // Cloned anew, it is new; completed, it is forgotten.
    app.execute(
        "UPDATE voices SET elevenlabs_voice_id = 'anew' WHERE elevenlabs_voice_id = 'known'",
    )
    .await;
    assert_eq!(hint(&["known"]).await, 0);
    assert_eq!(hint(&["anew"]).await, 1);
    assert!(
        !hinted()
            .await
            .iter()
            .any(|(hinted, _)| *hinted == row("known"))
    );
}

/// However many rarely looked up voices are overdue, the agenda also contains those that are looked up often.
async fn overdue_backlog_does_not_hide_young_voices(variant: Variant) {
    let app = App::new(variant).await;
    let ids: Vec<String> = (0..10).map(|n| format!("old-{n}")).collect();
    let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    ids.push("young");
    app.insert_processing(&ids).await;
    let (store, run_id) = (app.store().await, Uuid::new_v4());
    claim(&store, run_id).await;
    let notes = ids.iter().map(|id| Note {
        again_in: Duration::from_secs(if *id == "young" { 5 } else { 60 }),
        ..note(
            &app,
            id,
            Seen::Processing {
                kind: "cloned".into(),
                stage: Stage::Preparing,
            },
        )
    });
    let notes: Vec<_> = notes.collect();
    store.note(run_id, ACCOUNT, &notes).await.expect("notes");
    end_leases(&app).await;
    let young = RowId::new(app.stored(row_id("young")));
    for (pass, seconds) in [0, 10, 300].into_iter().enumerate() {
        app.age_own_tables(seconds).await;
        let agenda = store.agenda(2, None, None).await.expect("reads");
        let often: Vec<_> = agenda
            .voices
            .iter()
            .filter(|voice| voice.asked.is_some_and(|asked| asked.is_often))
            .map(|voice| voice.row.clone())
            .collect();
        assert_eq!(often, std::slice::from_ref(&young));
        let due = agenda.voices.iter().filter(|voice| voice.due_in.is_zero());
        assert_eq!(due.count(), [0, 1, 3][pass]);
        let asked = agenda.voices.iter().filter_map(|voice| voice.asked);
        let least = Duration::from_secs([0, 10, 310][pass]);
        assert!(
            asked
                .into_iter()
                .all(|asked| asked.ago >= least && asked.age >= asked.ago)
        );
    }
}

async fn completion_times_are_summed_by_kind(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let none = store.completion_times_by_kind().await.expect("reads");
    assert_eq!(none, BTreeMap::new());
    let (mut cloned, mut professional) = (Quantiles::default(), Quantiles::default());
    for seconds in [5, 5, 60] {
        cloned.add(Duration::from_secs(seconds));
    }
    professional.add(Duration::from_secs(86_400));
    let one = BTreeMap::from([("cloned".to_owned(), cloned.clone())]);
    let both = BTreeMap::from([
        ("cloned".to_owned(), cloned.clone()),
        ("it's \"professional\"".to_owned(), professional.clone()),
    ]);
    for completion_times_by_kind in [one, BTreeMap::new(), both] {
        let run = Run {
            completion_times_by_kind,
            ..ledger_entry()
        };
        store.record_run(&run).await.expect("records");
    }
    for (bucket, count) in cloned.clone().buckets() {
        cloned.add_to_bucket(bucket, count);
    }
    let times = store.completion_times_by_kind().await.expect("reads");
    let expected = BTreeMap::from([
        ("cloned".to_owned(), cloned),
        ("it's \"professional\"".to_owned(), professional),
    ]);
    assert_eq!(times, expected);
}

/// A daemon that knows a moment without new voices reads only rows that were written since.
async fn new_voices_are_found_among_recently_written_rows(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["before"]).await;
    let store = app.store().await;
    let agenda = async || store.agenda(10, None, None).await.expect("reads");
    let found = async |version: &str| {
        let found = store.unscheduled(10, Some(version)).await.expect("reads");
        let rows = found.into_iter().map(|voice| voice.row.to_string());
        rows.collect::<BTreeSet<_>>()
    };
    let row = |id| app.stored(row_id(id));
    // As long as transactions of other tests are under way that are older than the row, it may be later than they are.
    let mut version = agenda().await.version;
    while matches!(app.pool, Pool::Postgres(_)) && !found(&version).await.is_empty() {
        version = agenda().await.version;
    }
    app.insert_processing(&["after"]).await;
    assert!(found(&version).await.contains(&row("after")));
    app.execute(
        "UPDATE voices SET elevenlabs_voice_id = 'anew' WHERE elevenlabs_voice_id = 'before'",
    )
    .await;
    assert!(found(&version).await.contains(&row("before")));

    // A transaction that was under way at the moment commits later.
    if let Pool::Postgres(pool) = &app.pool {
        let mut late = pool.begin().await.expect("begins");
        let insert = format!(
            "INSERT INTO voices (id, user_id, elevenlabs_voice_id, name, status)
             SELECT '{}', user_id, 'late', name, status FROM voices LIMIT 1",
            row("late")
        );
        let insert = sqlx::query(sqlx::AssertSqlSafe(insert));
        insert.execute(&mut *late).await.expect("inserts");
        let during = agenda().await.version;
        late.commit().await.expect("commits");
        assert!(found(&during).await.contains(&row("late")));
    }

    assert!(!agenda().await.any_lease_expired);
    claim(&store, Uuid::new_v4()).await;
    assert!(!agenda().await.any_lease_expired);
    app.age_own_tables(61).await;
    assert!(agenda().await.any_lease_expired);
}

async fn cloning_again_resets_the_age(variant: Variant) {
    if variant == Variant::B {
        return; // has no created_at that could make it old
    }
    let app = App::new(variant).await;
    app.insert_processing(&["completed", "failed", "overtaken"])
        .await;
    let old = match app.pool {
        Pool::Postgres(_) => "UPDATE voices SET created_at = created_at - interval '2 days'",
        Pool::Sqlite(_) => "UPDATE voices SET created_at = '2020-01-01 00:00:00.000000'",
    };
    app.execute(old).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    app.execute(
        "UPDATE voices SET elevenlabs_voice_id = 'overtaken2' WHERE elevenlabs_voice_id = 'overtaken'",
    )
    .await;
    let transitions = [
        completed(&app, "completed"),
        failed(&app, "failed"),
        failed(&app, "overtaken"),
    ];
    store
        .apply(run_id, &transitions, Record::Nothing)
        .await
        .expect("applies");
    app.age_own_tables(8 * 24 * 60 * 60).await;
    app.age_application(8 * 24 * 60 * 60).await;
    store.tidy(1000).await.expect("tidies");
    app.execute(
        "UPDATE voices SET elevenlabs_voice_id = elevenlabs_voice_id || '3', status = 'processing'",
    )
    .await;
    let voices = claim(&store, Uuid::new_v4()).await;
    assert_eq!(voices.len(), 3);
    for voice in voices {
        assert!(voice.age.witnessed < Duration::from_secs(60), "{voice:?}");
    }
}

async fn only_one_process_sends_the_half_open_probe(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let standing = async || store.provider_state(ACCOUNT).await.expect("reads");
    let runs: [Uuid; 3] = std::array::from_fn(|_| Uuid::new_v4());
    let probe = async |run: usize| {
        let probe = store.claim_probe(ACCOUNT, runs[run]).await;
        probe.expect("asks")
    };
    assert_eq!(standing().await, ProviderState::default());
    assert!(!probe(0).await, "there is nothing to probe");

    let open = ProviderState {
        opened: 2,
        open_for: Duration::from_secs(30),
        cooldown: Duration::from_secs(100),
        concurrency: Some(2.5),
    };
    let kept = store.save_provider_state(ACCOUNT, runs[0], open).await;
    kept.expect("keeps");
    let told = standing().await;
    assert!(told.is_open() && !told.wants_probe());
    assert_eq!((told.opened, told.concurrency), (2, Some(2.5)));
    assert!(told.cooldown > Duration::from_secs(90));
    assert!(!probe(0).await, "it is open");
    let late = ProviderState {
        opened: 1,
        open_for: Duration::from_secs(15),
        ..open
    };
    let kept = store.save_provider_state(ACCOUNT, runs[2], late).await;
    kept.expect("keeps");
    let told = standing().await;
    assert_eq!(told.opened, 2, "who learns of it late does not shorten it");
    assert!(told.open_for > Duration::from_secs(25));
    let unaware = ProviderState {
        opened: 0,
        cooldown: Duration::from_secs(200),
        concurrency: Some(1.5),
        ..ProviderState::default()
    };
    store.save_cooldown(ACCOUNT, unaware).await.expect("keeps");
    let told = standing().await;
    assert!(told.is_open(), "a pause says nothing of the breaker");
    assert!(told.cooldown > Duration::from_secs(190));
    assert_eq!((told.opened, told.concurrency), (2, Some(1.5)));

    app.age_own_tables(31).await;
    assert!(standing().await.wants_probe());
    assert!(probe(0).await);
    assert!(probe(0).await, "whoever lost the reply is told again");
    assert!(!probe(1).await, "one is enough");
    app.age_own_tables(36).await;
    assert!(probe(1).await, "unless it never came back");
    let kept = store.save_provider_state(ACCOUNT, runs[2], late).await;
    kept.expect("keeps");
    app.age_own_tables(16).await;
    assert!(!probe(2).await, "somebody probes, whoever else fails late");
    assert!(standing().await.cooldown > Duration::from_secs(20));
    let closed = ProviderState {
        opened: 0,
        cooldown: Duration::from_secs(5),
        ..open
    };
    let kept = store.save_provider_state(ACCOUNT, runs[1], closed).await;
    kept.expect("keeps");
    let told = standing().await;
    assert!(!told.is_open() && !told.wants_probe());
    assert!(
        told.cooldown > Duration::from_secs(20),
        "a longer pause stays"
    );
    assert_eq!(
        store
            .provider_state(Uuid::from_u128(8))
            .await
            .expect("reads"),
        ProviderState::default(),
        "another key is another account"
    );
}

async fn voice_set_aside_repeatedly_is_skipped_for_a_day(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["odd"]).await;
    let store = app.store().await;
    for _ in 0..3 {
        let run_id = Uuid::new_v4();
        assert_eq!(claim(&store, run_id).await.len(), 1);
        store
            .note(run_id, ACCOUNT, &[note(&app, "odd", too_long())])
            .await
            .expect("notes");
        end_leases(&app).await;
    }
    assert!(claim(&store, Uuid::new_v4()).await.is_empty());
    let by_name = Selection::Named(vec!["odd".into()]);
    let run_id = Uuid::new_v4();
    assert_eq!(
        store
            .claim(run_id, &by_name, 10)
            .await
            .expect("claims")
            .voices
            .len(),
        1,
        "on request"
    );
    store
        .note(run_id, ACCOUNT, &[note(&app, "odd", too_long())])
        .await
        .expect("notes");
    end_leases(&app).await;
    assert!(claim(&store, Uuid::new_v4()).await.is_empty());
    app.age_own_tables(24 * 60 * 60).await;
    assert_eq!(claim(&store, Uuid::new_v4()).await.len(), 1, "after a day");

    let run_id = Uuid::new_v4();
    app.age_own_tables(61).await;
    claim(&store, run_id).await;
    store
        .note(run_id, ACCOUNT, &[note(&app, "odd", too_long())])
        .await
        .expect("notes");
    end_leases(&app).await;
    assert!(claim(&store, Uuid::new_v4()).await.is_empty());
    app.execute("UPDATE voices SET elevenlabs_voice_id = 'replaced'")
        .await;
    assert_eq!(
        claim(&store, Uuid::new_v4()).await.len(),
        1,
        "a replaced clone starts over"
    );
}

async fn voices_are_found_by_row_id_and_by_provider_id(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c"]).await;
    app.insert(&[NewVoice {
        status: "failed",
        ..NewVoice::processing("d")
    }])
    .await;
    let store = app.store().await;
    let names = vec![
        row_id("a").hyphenated().to_string(),
        "b".into(),
        "nobody".into(),
        "d".into(),
    ];
    let page = store
        .peek(&Selection::Named(names), 100)
        .await
        .expect("peeks");
    let found: BTreeSet<_> = page
        .voices
        .into_iter()
        .filter_map(|voice| voice.provider_id)
        .collect();
    assert_eq!(found, BTreeSet::from(["a".into(), "b".into()]));
}

async fn hinted_and_remaining_voices_cover_the_whole_table(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c", "odd"]).await;
    app.insert(&[NewVoice {
        status: "completed",
        ..NewVoice::processing("d")
    }])
    .await;
    let store = app.store().await;
    for _ in 0..3 {
        let run_id = Uuid::new_v4();
        let odd = Selection::Named(vec!["odd".into()]);
        store.claim(run_id, &odd, 10).await.expect("claims");
        let seen = too_long();
        store
            .note(run_id, ACCOUNT, &[note(&app, "odd", seen)])
            .await
            .expect("notes");
        end_leases(&app).await;
    }
    let names: Vec<String> = vec![
        row_id("a").hyphenated().to_string(),
        row_id("c").simple().to_string(),
        "c".into(),
        "d".into(),
        "odd".into(),
        "nobody".into(),
    ];
    let run_id = Uuid::new_v4();
    let (mut hinted, mut after) = (Vec::new(), None);
    loop {
        let names = names.clone();
        let page = store
            .claim(run_id, &Selection::Hinted { names, after }, 1)
            .await
            .expect("claims");
        hinted.extend(page.voices);
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    let ids = |voices: Vec<Claimed>| -> Vec<String> {
        let mut ids: Vec<_> = voices.into_iter().filter_map(|v| v.provider_id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(hinted), ["a", "c"], "each once, and none that rests");
    let others = Selection::Range {
        after: None,
        up_to: None,
        except: names,
    };
    assert_eq!(store.count(&others).await.expect("counts"), 1);
    let page = store.peek(&others, 10).await.expect("peeks");
    assert_eq!(ids(page.voices), ["b"]);
    let page = store.claim(run_id, &others, 10).await.expect("claims");
    assert_eq!((page.leased_elsewhere, page.set_aside), (0, 0));
    assert_eq!(ids(page.voices), ["b"]);
}

async fn finished_voices_are_found_by_any_form_of_their_row_id(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a"]).await;
    for (id, status) in [("b", "completed"), ("c", "failed")] {
        app.insert(&[NewVoice {
            status,
            ..NewVoice::processing(id)
        }])
        .await;
    }
    let store = app.store().await;
    let mut rows: Vec<String> = ["a", "b", "c", "nobody"]
        .iter()
        .flat_map(|id| {
            let id = row_id(id);
            [id.hyphenated().to_string(), id.simple().to_string()]
        })
        .collect();
    rows.extend(["b", "\"", "7", ""].map(str::to_owned));
    let members = store.queue_members("queue", &rows).await;
    let mut finished = members.expect("finds").finished;
    finished.sort_unstable();
    let mut expected = rows[2..6].to_vec();
    expected.sort_unstable();
    assert_eq!(finished, expected);
}

async fn age_counts_from_creation_first_sight_or_new_clone(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a"]).await;
    let store = app.store().await;
    let see = async |clone: &str| {
        let run_id = Uuid::new_v4();
        let age = claim(&store, run_id).await[0].age;
        let processing = Seen::Processing {
            kind: "cloned".into(),
            stage: Stage::Preparing,
        };
        let notes = [Note {
            provider_id: Some(clone.to_owned()),
            ..note(&app, "a", processing)
        }];
        store.note(run_id, ACCOUNT, &notes).await.expect("notes");
        end_leases(&app).await;
        age
    };
    match (variant, &app.pool) {
        (Variant::B, _) => {
            see("a").await;
            app.age_own_tables(7200).await;
        }
        (_, Pool::Postgres(_)) => {
            app.execute("UPDATE voices SET created_at = created_at - interval '2 hours'")
                .await
        }
        (_, Pool::Sqlite(_)) => {
            app.execute("UPDATE voices SET created_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', '-2 hours')").await;
        }
    }
    let two_hours = Duration::from_secs(2 * 60 * 60);
    let Age {
        created, witnessed, ..
    } = see("a").await;
    assert!(
        created >= two_hours && created < two_hours + Duration::from_secs(60),
        "{created:?}"
    );
    match variant {
        Variant::B => assert_eq!(witnessed, created),
        Variant::A | Variant::D | Variant::Pooled | Variant::E32 | Variant::E36 => {
            assert!(witnessed < Duration::from_secs(60), "{witnessed:?}");
        }
    }

    app.execute("UPDATE voices SET elevenlabs_voice_id = 'replaced'")
        .await;
    let age = see("replaced").await;
    assert!(
        age.created.max(age.witnessed) < Duration::from_secs(60),
        "a replaced clone is new: {age:?}"
    );
    app.age_own_tables(100).await;
    let age = see("replaced").await;
    for age in [age.created, age.witnessed] {
        assert!(
            age >= Duration::from_secs(100) && age < Duration::from_secs(160),
            "{age:?}"
        );
    }
}

/// The metric of the oldest age, and the alert on it, cover the same voices as `voice-sync status`.
async fn metric_status_and_claim_agree_on_the_age_of_the_oldest_voice(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b"]).await;
    match &app.pool {
        _ if variant == Variant::B => {}
        Pool::Postgres(_) => {
            app.execute("UPDATE voices SET created_at = created_at - interval '2 days'")
                .await;
        }
        Pool::Sqlite(_) => {
            app.execute("UPDATE voices SET created_at = unixepoch() - 2 * 24 * 60 * 60")
                .await;
        }
    }
    let store = app.store().await;
    let oldest = async || {
        let overview = store.overview().await.expect("reads").oldest;
        let survey = store.survey(None, AgeFrom::Created, 5, 5, None).await;
        let survey = survey.expect("reads").oldest[0].age;
        let claimed = store.peek(&ALL, 10).await.expect("peeks").voices;
        let claimed = claimed.iter().map(|voice| voice.age.created).max();
        let [one, two, three] = [overview, survey, claimed].map(|age| age.expect("there is one"));
        let apart = one.max(two).max(three) - one.min(two).min(three);
        assert!(apart < Duration::from_secs(60), "{one:?} {two:?} {three:?}");
        one
    };
    oldest().await;
    // An operator puts both back to processing.
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let both = [failed(&app, "a"), failed(&app, "b")];
    let applied = store.apply(run_id, &both, Record::Nothing).await;
    assert_eq!(applied.expect("applies").moved.len(), 2);
    end_leases(&app).await;
    let voices = store
        .records(&Wanted::Listed(VoiceFilter::Failed, None), 10)
        .await;
    let command = CommandRun::begin("retry");
    let back = store.put_back(&command, &voices.expect("reads")).await;
    assert_eq!(back.expect("puts back").len(), 2);
    assert!(oldest().await < Duration::from_secs(60), "it begins anew");
}

async fn another_process_publishes_leased_events_after_a_crash(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let all = [
        completed(&app, "a"),
        completed(&app, "b"),
        failed(&app, "c"),
    ];
    let recorded = store
        .apply(run_id, &all, Record::ForMe)
        .await
        .expect("applies")
        .events;
    assert_eq!(recorded.len(), 3);
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!((pending.all, pending.unleased), (3, 0));

    // The first one gets out, and the process goes on without the second: it is free at once.
    let leased = LeasedEvents::from(recorded.clone());
    let published = [recorded[0].id];
    store
        .settle_events(&leased, &published, &[])
        .await
        .expect("settles");
    store
        .settle_events(&leased, &published, &[])
        .await
        .expect("a repeated mark says the same twice");
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!((pending.all, pending.unleased), (2, 2));
    let leased = store.lease_events(10).await.expect("leases");
    let ids = |events: &[OutboxEvent]| events.iter().map(|e| e.event_id).collect::<Vec<_>>();
    assert_eq!(ids(&leased.events), ids(&recorded[1..]));
    let bodies = |events: &[OutboxEvent]| events.iter().map(OutboxEvent::body).collect::<Vec<_>>();
    assert_eq!(
        bodies(&leased.events),
        bodies(&recorded[1..]),
        "the same events, to the byte"
    );
    assert!(lease_events(&store, 10).await.is_empty());
    app.age_own_tables(16).await;
    let leased = store.lease_events(10).await.expect("leases");
    assert_eq!(
        ids(&leased.events),
        ids(&recorded[1..]),
        "a crashed process's lease ends by itself"
    );
    settle_all(&store, &leased).await;
    assert_eq!(store.pending_events(None).await.expect("counts").all, 0);
}

/// A batch is not marked while some of its events are unpublished, even if the caller knows only of published ones.
async fn a_batch_is_marked_once_all_its_events_are_published(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a", "b", "c"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let all = ["a", "b", "c"].map(|id| completed(&app, id));
    let applied = store.apply(run_id, &all, Record::ForMe).await;
    let events = applied.expect("applies").events;
    let known = LeasedEvents::from(events[..2].to_vec());
    let published = [events[0].id, events[1].id];
    store
        .settle_events(&known, &published, &[])
        .await
        .expect("settles");
    assert_eq!(store.pending_events(None).await.expect("counts").all, 3);
    app.age_own_tables(16).await;
    assert_eq!(
        lease_events(&store, 10).await.len(),
        3,
        "once more, rather than never"
    );
}

/// Twenty processes that claim at the same time share the voices: each voice is leased once.
async fn claims_of_many_processes_never_overlap(variant: Variant) {
    let app = App::new(variant).await;
    let ids: Vec<String> = (0..50).map(|n| format!("v{n}")).collect();
    let voices: Vec<_> = ids.iter().map(NewVoice::processing).collect();
    app.insert(&voices).await;
    let mut stores = Vec::new();
    for _ in 0..20 {
        let store = app.store().await;
        // Connected, and with its statements prepared.
        store.peek(&ALL, 1).await.expect("peeks");
        stores.push(store);
    }
    for _ in 0..5 {
        end_leases(&app).await;
        let claims = stores
            .iter()
            .map(async |store| store.claim(Uuid::new_v4(), &ALL, 100).await);
        let mut claimed = Vec::new();
        for page in join_all(claims).await {
            claimed.extend(
                page.expect("claims")
                    .voices
                    .into_iter()
                    .map(|voice| voice.row),
            );
        }
        claimed.sort_unstable();
        assert_eq!(claimed.len(), 50);
        claimed.dedup();
        assert_eq!(claimed.len(), 50);
    }
}

/// A pass may see a row twice: by its row id and by its provider id. It counts once, with the last answer.
async fn repeated_notes_of_one_voice_count_once(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["twice", "other"]).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let notes = [
        note(&app, "twice", Seen::Superseded),
        note(&app, "other", Seen::Missing),
        note(&app, "twice", Seen::Missing),
        note(&app, "twice", Seen::Missing),
    ];
    store.note(run_id, ACCOUNT, &notes).await.expect("notes");
    let missing = store.missing(run_id, ACCOUNT, None, 10).await;
    let mut times: Vec<_> = missing
        .expect("lists")
        .into_iter()
        .map(|voice| (voice.provider_id, voice.times))
        .collect();
    times.sort();
    assert_eq!(times, [("other".to_owned(), 1), ("twice".to_owned(), 1)]);
}

/// A pass that lost the reply to its commit finds the row failed, and assumes that the application did it.
async fn superseded_answer_keeps_the_failure_reason(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["failed", "waits"]).await;
    let store = app.store().await;
    for run_id in [Uuid::new_v4(), Uuid::new_v4()] {
        end_leases(&app).await;
        claim(&store, run_id).await;
        if app.row("failed").await.status == "processing" {
            let transition = [failed(&app, "failed")];
            let applied = store.apply(run_id, &transition, Record::Nothing).await;
            applied.expect("applies");
        }
        let notes = ["failed", "waits"].map(|id| note(&app, id, Seen::Superseded));
        store.note(run_id, ACCOUNT, &notes).await.expect("notes");
        let records = store.named(&["failed".to_owned()], 10).await;
        let records = records.expect("finds");
        let known = records[0].notes.as_ref().expect("known");
        assert_eq!(known.failure.as_deref(), Some("banned"));
        assert!(known.failed_at.is_some());
    }
}

/// An older version, which may still be running, leases voices in a different way.
async fn voice_leased_by_an_older_version_is_not_claimed(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["older", "free"]).await;
    let store = app.store().await;
    let (second, ahead) = match app.pool {
        Pool::Postgres(_) => ("interval '1 second'", "now() + interval '50 seconds'"),
        Pool::Sqlite(_) => (
            "1000",
            "CAST(unixepoch('subsec') * 1000 AS INTEGER) + 50000",
        ),
    };
    app.execute(&format!(
        "INSERT INTO {} (row_id, provider_id, first_seen, run_id, lease_until)
         VALUES ('{}', 'older', {ahead} - 51 * {second}, '{}', {ahead})",
        app.own("voices"),
        app.stored(row_id("older")),
        Uuid::new_v4(),
    ))
    .await;
    let unscheduled = store.unscheduled(10, None).await.expect("lists");
    assert_eq!(unscheduled.len(), 1);
    let run_id = Uuid::new_v4();
    let page = store.claim(run_id, &ALL, 10).await.expect("claims");
    let names: Vec<_> = page.voices.iter().map(|voice| &voice.provider_id).collect();
    assert_eq!(names, [&Some("free".to_owned())]);
    assert_eq!(page.leased_elsewhere, 1);

    app.age_own_tables(61).await;
    let run_id = Uuid::new_v4();
    assert_eq!(claim(&store, run_id).await.len(), 2, "its lease has ended");
    let processing = Seen::Processing {
        kind: "cloned".into(),
        stage: Stage::Preparing,
    };
    let notes = [note(&app, "older", processing)];
    store.note(run_id, ACCOUNT, &notes).await.expect("notes");
    end_leases(&app).await;
    let lease_until = format!(
        "SELECT count(*) FROM {} WHERE lease_until IS NOT NULL",
        app.own("voices")
    );
    assert_eq!(app.number(&lease_until).await, 0);
}

/// An older version, which may still be running, records events without a batch.
async fn events_of_an_older_version_are_published_after_its_lease_ends(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let now = match app.pool {
        Pool::Postgres(_) => "now()",
        Pool::Sqlite(_) => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    };
    let soon = match app.pool {
        Pool::Postgres(_) => "now() + interval '14 seconds'",
        Pool::Sqlite(_) => "CAST(unixepoch('subsec') * 1000 AS INTEGER) + 14000",
    };
    let events = [
        (1, "NULL", "NULL"),
        (2, soon, "NULL"),
        (3, soon, now),
        (4, "NULL", "NULL"),
    ];
    for (number, leased_until, published_at) in events {
        app.execute(&format!(
            "INSERT INTO {} (event_id, run_id, event_type, voice_id, occurred_at, leased_until, published_at)
             VALUES ('{}', '{}', 'voice.created', 'v{number}', {now}, {leased_until}, {published_at})",
            app.own("outbox"),
            Uuid::from_u128(number),
            Uuid::from_u128(7),
        ))
        .await;
    }
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!((pending.all, pending.unleased), (3, 2));
    assert_eq!(store.overview().await.expect("looks").outbox, 3);
    assert!(
        store
            .agenda(1, None, None)
            .await
            .expect("looks")
            .events_wait
    );
    let leased = store.lease_events(10).await.expect("leases");
    let ids = |events: &[OutboxEvent]| -> Vec<u128> {
        events
            .iter()
            .map(|event| event.event_id.as_u128())
            .collect()
    };
    assert_eq!(ids(&leased.events), [1, 4]);
    settle_all(&store, &leased).await;
    assert!(lease_events(&store, 10).await.is_empty());
    assert_eq!(store.pending_events(None).await.expect("counts").all, 1);

    // The older one crashed before it had published the second one.
    app.age_own_tables(15).await;
    let leased = store.lease_events(10).await.expect("leases");
    assert_eq!(ids(&leased.events), [2]);
    settle_all(&store, &leased).await;
    assert_eq!(store.pending_events(None).await.expect("counts").all, 0);
    assert!(
        !store
            .agenda(1, None, None)
            .await
            .expect("looks")
            .events_wait
    );
}

/// If events are deleted by hand, their batch still has the old number of events.
async fn batch_with_deleted_events_is_published_once(variant: Variant) {
    for left in [3, 2, 1, 0] {
        let app = App::new(variant).await;
        app.insert_processing(&["a", "b", "c"]).await;
        let store = app.store().await;
        let run_id = Uuid::new_v4();
        claim(&store, run_id).await;
        let all = ["a", "b", "c"].map(|id| completed(&app, id));
        let applied = store.apply(run_id, &all, Record::ForAnyone).await;
        let ids: Vec<_> = applied
            .expect("applies")
            .events
            .iter()
            .map(|e| e.id)
            .collect();
        for id in &ids[left..] {
            let outbox = app.own("outbox");
            app.execute(&format!("DELETE FROM {outbox} WHERE id = {id}"))
                .await;
        }
        let leased = store.lease_events(10).await.expect("leases");
        assert_eq!(settle_all(&store, &leased).await, ids[..left]);
        assert_eq!(
            store.pending_events(None).await.expect("counts").all,
            0,
            "{left} left"
        );
        app.age_own_tables(16).await;
        assert!(lease_events(&store, 10).await.is_empty(), "{left} left");
    }
}

/// Resend and purge process the outbox in portions, and skip events that are being published.
async fn resend_and_purge_work_in_portions(variant: Variant) {
    const EVENTS: usize = 1201;
    let app = App::new(variant).await;
    let ids: Vec<String> = (0..EVENTS).map(|n| format!("v{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    app.insert_processing(&ids).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    let all: Vec<_> = ids.iter().map(|id| completed(&app, id)).collect();
    for some in all.chunks(400) {
        let applied = store.apply(run_id, some, Record::ForMe).await;
        let leased = LeasedEvents::from(applied.expect("applies").events);
        settle_all(&store, &leased).await;
    }
    let command = || CommandRun::begin("outbox");
    let any = EventFilter::default();
    let resent = store.resend(&command(), &any).await.expect("resends");
    assert_eq!(resent, EVENTS as u64);
    assert_eq!(store.resend(&command(), &any).await.expect("resends"), 0);
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!(pending.unleased, EVENTS as u64);
    let leased = lease_events(&store, 10).await;
    assert!(!leased.is_empty() && leased.len() < EVENTS);
    let purged = store.purge(&command(), &any).await.expect("purges");
    assert_eq!(purged, (EVENTS - leased.len()) as u64);
    let pending = store.pending_events(None).await.expect("counts");
    assert_eq!((pending.all, pending.unleased), (leased.len() as u64, 0));
}

fn ledger_entry() -> Run {
    Run {
        run_id: Uuid::new_v4(),
        account: None,
        command: None,
        started_at: Utc::now(),
        duration: Duration::from_millis(12),
        exit_code: 0,
        found: 0,
        counts: json!({"due": 1}),
        cursor: NextPass::FromTheBeginning,
        unlisted: Vec::new(),
        concurrency: None,
        spending: None,
        completion_times: Quantiles::default(),
        completion_times_by_kind: BTreeMap::new(),
    }
}

async fn ledger_stores_where_the_next_pass_begins(variant: Variant) {
    let app = App::new(variant).await;
    let store = app.store().await;
    let account = Uuid::new_v4();
    assert_eq!(
        store.load_state(account).await.expect("remembers"),
        Default::default()
    );
    app.insert_processing(&["a", "b"]).await;
    let page = store.claim(Uuid::new_v4(), &ALL, 1).await.expect("claims");
    let position = page.last.expect("a full page");
    let run = Run {
        account: Some(account),
        cursor: NextPass::After(position.clone()),
        unlisted: vec!["professional".into()],
        counts: json!({"requests": 12, "retries": 5}),
        ..ledger_entry()
    };
    store.record_run(&run).await.expect("records");
    store.record_run(&run).await.expect("records, once");
    let more = Run {
        run_id: Uuid::new_v4(),
        unlisted: vec!["generated".into()],
        ..run.clone()
    };
    store.record_run(&more).await.expect("records");
    let memory = store.load_state(account).await.expect("remembers");
    assert_eq!(memory.resume_after, Some(position.clone()));
    let named = Run {
        cursor: NextPass::AsBefore,
        ..ledger_entry()
    };
    store.record_run(&named).await.expect("records");
    let memory = store.load_state(account).await.expect("remembers");
    assert_eq!(
        memory.resume_after,
        Some(position),
        "named voices do not move it"
    );
    assert_eq!(memory.unlisted.len(), 2);
    assert_eq!(memory.spent, Spent::counted(2 * 12, 2 * 5));
    app.age_own_tables(121).await;
    let memory = store.load_state(account).await.expect("remembers");
    assert_eq!(memory.spent, Spent::default(), "that was long ago");
    assert!(
        store
            .load_state(Uuid::new_v4())
            .await
            .expect("remembers")
            .unlisted
            .is_empty()
    );
    store.record_run(&ledger_entry()).await.expect("records");
    assert_eq!(
        store
            .load_state(account)
            .await
            .expect("remembers")
            .resume_after,
        None
    );
}

async fn tidying_removes_obsolete_rows(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["done", "bad", "left", "waits"])
        .await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    claim(&store, run_id).await;
    let events = store
        .apply(
            run_id,
            &[completed(&app, "done"), failed(&app, "bad")],
            Record::ForMe,
        )
        .await
        .expect("applies")
        .events;
    let processing = || Seen::Processing {
        kind: "cloned".into(),
        stage: Stage::Preparing,
    };
    store
        .note(
            run_id,
            ACCOUNT,
            &[
                note(&app, "left", processing()),
                note(&app, "waits", processing()),
            ],
        )
        .await
        .expect("notes");
    store.record_run(&ledger_entry()).await.expect("records");
    let (leased, published) = (LeasedEvents::from(events.clone()), [events[0].id]);
    store
        .settle_events(&leased, &published, &[])
        .await
        .expect("settles");
    app.execute("DELETE FROM voices WHERE elevenlabs_voice_id = 'left'")
        .await;
    let counts = async |app: &App| {
        let mut counts = Vec::new();
        for table in ["voices", "outbox", "runs"] {
            counts.push(
                app.number(&format!("SELECT count(*) FROM {}", app.own(table)))
                    .await,
            );
        }
        counts
    };
    store.tidy(1000).await.expect("tidies");
    assert_eq!(counts(&app).await, [3, 2, 1], "all of it is fresh");
    app.age_own_tables(2 * 60 * 60).await;
    store.tidy(1000).await.expect("tidies");
    assert_eq!(
        counts(&app).await,
        [2, 2, 1],
        "a deleted row's voice is forgotten"
    );
    app.age_own_tables(7 * 24 * 60 * 60).await;
    store.tidy(1000).await.expect("tidies");
    assert_eq!(
        counts(&app).await,
        [2, 1, 0],
        "what waits, what is unpublished, and why a failed row failed stay"
    );
    app.execute("DELETE FROM voices WHERE elevenlabs_voice_id = 'bad'")
        .await;
    store.tidy(1000).await.expect("tidies");
    assert_eq!(counts(&app).await, [1, 1, 0]);

    // A daemon makes many passes within the week.
    let (table, kept) = (app.own("runs"), 10_000);
    app.execute(&match app.pool {
        Pool::Postgres(_) => format!(
            "INSERT INTO {table} (run_id, started_at, duration_ms, exit_code, found, counts)
             SELECT gen_random_uuid(), now(), 1, 0, 1, '{{}}' FROM generate_series(1, {kept} + 500)"
        ),
        Pool::Sqlite(_) => format!(
            "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {kept} + 500)
             INSERT INTO {table} (run_id, started_at, finished_at, duration_ms, exit_code, found, counts)
             SELECT n, 0, unixepoch() * 1000, 1, 0, 1, '{{}}' FROM s"
        ),
    })
    .await;
    store.tidy(1000).await.expect("tidies");
    assert_eq!(
        app.number(&format!("SELECT count(*) FROM {table}")).await,
        kept
    );
}

async fn peek_writes_nothing(variant: Variant) {
    let app = App::new(variant).await;
    app.insert_processing(&["a"]).await;
    let store = app.store().await;
    let page = store.peek(&ALL, 10).await.expect("peeks");
    assert_eq!(page.voices.len(), 1);
    assert_eq!(
        app.number(&format!("SELECT count(*) FROM {}", app.own("voices")))
            .await,
        0
    );
    claim(&store, Uuid::new_v4()).await;
    let page = store.peek(&ALL, 10).await.expect("peeks");
    assert_eq!((page.voices.len(), page.leased_elsewhere), (0, 1));
}

/// SQLite stores an id of digits as a number if the column has a numeric type.
#[tokio::test]
async fn provider_ids_may_be_stored_as_numbers_on_sqlite() {
    let ddl = "CREATE TABLE voices (id text PRIMARY KEY NOT NULL, user_id text,
                                    elevenlabs_voice_id integer, status text NOT NULL,
                                    preview_url text, completed_at text);
               INSERT INTO voices (id, elevenlabs_voice_id, status) VALUES ('a', 42, 'processing')";
    let app = App::sqlite(Variant::E36, ddl).await;
    let (store, run_id) = (app.store().await, Uuid::new_v4());
    let claimed = claim(&store, run_id).await;
    let transition = Transition {
        row: claimed[0].row.clone(),
        provider_id: claimed[0].checked_id().expect("an id").into(),
        target: Target::Completed { preview_url: None },
    };
    let applied = store.apply(run_id, &[transition], Record::ForMe).await;
    let applied = applied.expect("applies");
    assert_eq!((applied.moved.len(), applied.events.len()), (1, 1));
}

/// SQLite reads only one page of rows if an index has them in the order of the walk.
#[tokio::test]
async fn index_determines_the_order_of_a_walk_on_sqlite() {
    for (index, first) in [("(status)", "c"), ("(id) WHERE status = 'processing'", "a")] {
        let ddl = format!(
            "CREATE TABLE voices (id text PRIMARY KEY NOT NULL, user_id text, elevenlabs_voice_id text,
                                  status text NOT NULL, preview_url text, completed_at text);
             CREATE INDEX ix_voices ON voices {index};
             INSERT INTO voices (id, elevenlabs_voice_id, status)
             VALUES ('c', 'x', 'processing'), ('a', 'y', 'processing'), ('b', 'z', 'processing')"
        );
        let app = App::sqlite(Variant::E36, &ddl).await;
        let store = app.store().await;
        let page = store.claim(Uuid::new_v4(), &ALL, 1).await.expect("claims");
        assert_eq!(page.voices[0].row, RowId::new(first), "{index}");
    }
}

/// `character` without a length is `character(1)`: casts must not truncate keys and values to it.
#[tokio::test]
async fn fixed_length_keys_and_statuses_are_not_truncated() {
    let ddl = "
        CREATE TABLE voices (
            id char(36) PRIMARY KEY,
            user_id char(36) NOT NULL,
            elevenlabs_voice_id char(30) NOT NULL,
            name varchar(200),
            status char(20) NOT NULL DEFAULT 'processing',
            preview_url varchar(1024),
            completed_at timestamp
        );
        INSERT INTO voices (id, user_id, elevenlabs_voice_id)
        SELECT gen_random_uuid(), gen_random_uuid(), 'v' || n FROM generate_series(1, 250) n;";
    let app = App::postgres(Variant::B, ddl).await;
    let store = app.store().await;
    let run_id = Uuid::new_v4();
    let (mut after, mut seen) = (None, 0);
    loop {
        let selection = Selection::Range {
            after,
            up_to: None,
            except: Vec::new(),
        };
        let page = store.claim(run_id, &selection, 100).await.expect("claims");
        seen += page.voices.len();
        let transitions: Vec<_> = page
            .voices
            .into_iter()
            .map(|voice| Transition {
                row: voice.row,
                provider_id: ProviderVoiceId::parse(&voice.provider_id.expect("is there"))
                    .expect("an id")
                    .into(),
                target: Target::Completed { preview_url: None },
            })
            .collect();
        let applied = store
            .apply(run_id, &transitions, Record::Nothing)
            .await
            .expect("applies");
        assert_eq!(applied.moved.len(), transitions.len());
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 250);
    assert_eq!(
        app.number("SELECT count(*) FROM voices WHERE status = 'completed'")
            .await,
        250
    );
}

macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        contract!(@variant variant_a, A, $($promise),+);
        contract!(@variant variant_b, B, $($promise),+);
        contract!(@variant variant_d, D, $($promise),+);
        contract!(@variant behind_pgbouncer, Pooled, $($promise),+);
        contract!(@variant variant_e_with_32_characters, E32, $($promise),+);
        contract!(@variant variant_e_with_36_characters, E36, $($promise),+);
    };
    (@variant $module:ident, $variant:ident, $($promise:ident),+) => {
        mod $module {
            use crate::support::app::Variant;
            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(Variant::$variant).await;
                }
            )+
        }
    };
}

contract!(
    every_processing_voice_is_claimed_once_page_by_page,
    walk_continues_after_a_deleted_row,
    leased_voice_belongs_to_one_pass_until_the_lease_ends,
    completion_writes_three_columns_and_one_event,
    failure_writes_only_the_status_column,
    application_changes_win_over_a_transition,
    refused_transition_records_no_event,
    duplicate_transition_is_applied_once,
    notes_of_a_pass_are_remembered,
    absences_are_counted_per_key,
    cloning_again_resets_the_absence,
    unanswerable_voices_are_isolated_and_then_quarantined,
    events_refused_by_the_bus_come_last,
    agenda_contains_only_what_can_be_done_now,
    all_processes_share_the_request_budget,
    hint_makes_a_voice_due_at_most_once_in_five_seconds,
    new_voices_are_found_among_recently_written_rows,
    completion_times_are_summed_by_kind,
    overdue_backlog_does_not_hide_young_voices,
    cloning_again_resets_the_age,
    only_one_process_sends_the_half_open_probe,
    voice_set_aside_repeatedly_is_skipped_for_a_day,
    voices_are_found_by_row_id_and_by_provider_id,
    hinted_and_remaining_voices_cover_the_whole_table,
    finished_voices_are_found_by_any_form_of_their_row_id,
    age_counts_from_creation_first_sight_or_new_clone,
    metric_status_and_claim_agree_on_the_age_of_the_oldest_voice,
    another_process_publishes_leased_events_after_a_crash,
    a_batch_is_marked_once_all_its_events_are_published,
    claims_of_many_processes_never_overlap,
    repeated_notes_of_one_voice_count_once,
    superseded_answer_keeps_the_failure_reason,
    voice_leased_by_an_older_version_is_not_claimed,
    events_of_an_older_version_are_published_after_its_lease_ends,
    batch_with_deleted_events_is_published_once,
    resend_and_purge_work_in_portions,
    only_one_process_retries_a_failed_bus,
    ledger_stores_where_the_next_pass_begins,
    tidying_removes_obsolete_rows,
    peek_writes_nothing,
);
