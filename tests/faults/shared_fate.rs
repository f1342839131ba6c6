//! Where many items share a statement or a round trip, bad ones do not hold up good ones: rows whose change the
//! database refuses, and events that the bus refuses.

use redis::AsyncTypedCommands;

use crate::scene::Scene;
use crate::support::app::{Variant, row_id};
use crate::support::binary::{Ended, VoiceSync};
use crate::support::daemon::{Daemon, daemon};
use crate::{budget, rng};

/// Voices that are chosen at random to be bad.
fn choose(voices: usize, bad: usize) -> Vec<String> {
    let mut numbers: Vec<usize> = (0..voices).collect();
    rng().shuffle(&mut numbers);
    let bad = numbers[..bad].iter();
    bad.map(|number| format!("sim-ready-{number:05}")).collect()
}

/// A trigger that refuses to change these rows.
async fn refuse(scene: &Scene, ids: &[String], how: &str) {
    let ids: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
    let ids = ids.join(", ");
    let sql = match scene.app.variant {
        Variant::E32 | Variant::E36 => format!(
            "CREATE TRIGGER odd BEFORE UPDATE ON voices WHEN new.elevenlabs_voice_id IN ({ids})
             BEGIN SELECT {how}; END"
        ),
        Variant::A | Variant::B | Variant::D | Variant::Pooled => format!(
            "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'odd' USING ERRCODE = '{how}'; END $$;
             CREATE TRIGGER odd BEFORE UPDATE ON voices FOR EACH ROW
                 WHEN (new.elevenlabs_voice_id IN ({ids})) EXECUTE FUNCTION odd();"
        ),
    };
    scene.app.execute(&sql).await;
}

async fn allow(scene: &Scene) {
    let on = match scene.app.variant {
        Variant::E32 | Variant::E36 => "",
        Variant::A | Variant::B | Variant::D | Variant::Pooled => " ON voices",
    };
    scene.app.execute(&format!("DROP TRIGGER odd{on}")).await;
}

async fn rows_that_are_refused(variant: Variant, how: &str, voices: usize, bad: usize) {
    let scene = Scene::new(variant, &["ready"], voices).await;
    let odd = choose(voices, bad);
    refuse(&scene, &odd, how).await;
    let ended = scene.command().run().await;
    let what = format!("{variant:?}, {how}, {bad} of {voices}: {}", ended.stdout);
    ended.expect_code(0);
    assert_eq!(ended.count("completed"), (voices - bad) as u64, "{what}");
    assert_eq!(ended.count("set_aside"), bad as u64, "{what}");
    allow(&scene).await;
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_refused_by_the_database_do_not_block_the_others() {
    let voices = budget(200, 2000) as usize;
    let counts = [1, 2, voices / 100, voices / 10, voices / 2];
    let codes = [
        "VS001", "42501", "XX000", "54000", "42P01", "P0001", "22001",
    ];
    for how in &codes[..budget(3, 7) as usize] {
        for bad in counts {
            rows_that_are_refused(Variant::A, how, voices, bad).await;
        }
    }
    let errors = [
        "RAISE(ROLLBACK, 'odd')",
        "json('{')",
        "RAISE(ABORT, 'odd')",
        "RAISE(FAIL, 'odd')",
    ];
    for how in &errors[..budget(2, 4) as usize] {
        for bad in counts {
            rows_that_are_refused(Variant::E32, how, voices, bad).await;
        }
    }
}

/// In this case no row is at fault: none is set aside, and the error is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_set_aside_if_the_database_refuses_all() {
    for (variant, how) in [
        (Variant::A, "VS001"),
        (Variant::A, "42501"),
        (Variant::E32, "RAISE(ABORT, 'odd')"),
        (Variant::E32, "json('{')"),
    ] {
        let scene = Scene::new(variant, &["ready"], 120).await;
        refuse(&scene, &choose(120, 120), how).await;
        for _ in 0..4 {
            let ended = scene.command().run().await;
            assert!([69, 78].contains(&ended.code), "{how}: {ended:?}");
            assert!(
                ended.stderr.contains("refuses every change"),
                "{how}: {ended:?}"
            );
            assert_eq!(
                (ended.count("completed"), ended.count("set_aside")),
                (0, 0),
                "{how}"
            );
            scene.app.age_own_tables(61).await;
        }
        allow(&scene).await;
        scene.recover().await;
        scene.check().await;
    }
}

fn updates(scene: &Scene) -> String {
    format!("{}voice.updated", scene.bus.prefix)
}

/// The stream of one type of event is something else, so that Redis refuses these events and takes the others.
async fn refuse_updates(scene: &Scene) {
    let mut redis = scene.bus.connection.clone();
    let set = redis.set(updates(scene), "no stream").await;
    set.expect("Redis takes it");
}

async fn take_updates(scene: &Scene) {
    let mut redis = scene.bus.connection.clone();
    let deleted = redis.del(updates(scene)).await;
    deleted.expect("Redis takes it");
}

async fn events_that_are_refused(refused: usize, others: usize) {
    let mut scene = Scene::new(Variant::E32, &["banned"], refused).await;
    refuse_updates(&scene).await;
    let run = async |scene: &Scene| -> Ended {
        let ended = scene.command().run().await;
        scene.app.age_own_tables(1).await;
        ended
    };
    if refused > 0 {
        let first = run(&scene).await;
        first.expect_code(75);
        assert_eq!(first.count("events_pending"), refused as u64);
    }
    scene.add(&["ready"], others).await;
    let ended = run(&scene).await;
    assert_eq!(ended.count("completed"), others as u64);
    assert_eq!(
        ended.count("events_published"),
        others as u64,
        "{refused} refused: {}",
        ended.stdout
    );
    assert_eq!(ended.count("events_pending"), refused as u64);
    let told = scene.bus.events("voice.created").await;
    assert_eq!(told.len(), others, "{refused} refused");

    take_updates(&scene).await;
    scene.recover().await;
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_refused_by_the_bus_do_not_block_the_others() {
    for (refused, others) in [(0, 10), (1, 99), (2, 98), (10, 90), (50, 50), (1200, 100)] {
        events_that_are_refused(refused, others).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_retried_do_not_block_the_others() {
    for (variant, how) in [(Variant::A, "VS001"), (Variant::E32, "RAISE(ABORT, 'odd')")] {
        for bad in [1, 2, 10, 50, 100] {
            let scene = Scene::new(variant, &["banned"], 100).await;
            scene.command().run().await.expect_code(0);
            let odd: Vec<_> = choose(100, bad)
                .iter()
                .map(|id| id.replace("ready", "banned"))
                .collect();
            refuse(&scene, &odd, how).await;
            let retry = VoiceSync::new(&["retry", "--all-failed", "--yes"])
                .env("DATABASE_URL", &scene.app.url)
                .run()
                .await;
            retry.expect_code(0);
            let report = retry.report();
            let number = |field: &str| report[field].as_array().map_or(0, Vec::len);
            assert_eq!(
                (number("put_back"), number("left")),
                (100 - bad, bad),
                "{report}"
            );
            let left = report["left"].to_string();
            for id in &odd {
                assert!(left.contains(&row_id(id).to_string()), "{id}: {left}");
            }
        }
    }
}

/// The database refuses some rows and the bus some events: the daemon finishes all others, including those added later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_continues_despite_refused_rows_and_events() {
    const VOICES: usize = 200;
    for (variant, how) in [(Variant::A, "VS001"), (Variant::E32, "RAISE(ABORT, 'odd')")] {
        for bad in [1, VOICES / 100, VOICES / 10] {
            let mut scene = Scene::new(variant, &["ready"], VOICES).await;
            scene.add(&["banned"], bad).await;
            refuse(&scene, &choose(VOICES, bad), how).await;
            refuse_updates(&scene).await;
            let command = daemon(&scene.app.url, &scene.provider.url());
            let mut running = Daemon::start(command.publishing_to(&scene.bus));
            let good = i64::try_from(VOICES - bad).expect("few");
            running.wait_until(&scene.app, "completed", good).await;
            let failed = i64::try_from(bad).expect("few");
            running.wait_until(&scene.app, "failed", failed).await;
            for round in 1..=3 {
                scene.add(&["ready"], 2).await;
                let all = good + 2 * round;
                running.wait_until(&scene.app, "completed", all).await;
                let is_out = async || {
                    let events = scene.bus.events("voice.created").await.len();
                    (i64::try_from(events) == Ok(all)).then_some(())
                };
                running.wait_for("their events are published", is_out).await;
            }
            running.stop().await;
            allow(&scene).await;
            take_updates(&scene).await;
            scene.app.age_own_tables(25 * 60 * 60).await;
            scene.recover().await;
            scene.check().await;
        }
    }
}
