//! Several processes on one backlog.

use futures_util::future::join_all;

use crate::budget;
use crate::crashes::signal;
use crate::scene::{DECIDED, Scene};
use crate::support::app::Variant;

async fn each_voice_is_asked_about_by_one_process(
    variant: Variant,
    processes: usize,
    voices: usize,
) {
    let scene = Scene::new(variant, DECIDED, voices).await;
    let ended = join_all((0..processes).map(|_| scene.command().run())).await;
    for run in &ended {
        run.expect_code(0);
    }
    let moved: u64 = ended
        .iter()
        .map(|run| run.count("completed") + run.count("failed"))
        .sum();
    assert_eq!(moved, voices as u64);
    assert_eq!(
        ended.iter().map(|run| run.count("superseded")).sum::<u64>(),
        0
    );
    let asked: Vec<_> = scene
        .provider
        .requests()
        .into_iter()
        .flat_map(|request| request.voice_ids)
        .collect();
    assert_eq!(asked.len(), voices, "nobody was asked about twice");
    scene.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_share_the_work_on_postgresql() {
    let (processes, voices) = (budget(6, 10) as usize, budget(3000, 20_000) as usize);
    each_voice_is_asked_about_by_one_process(Variant::A, processes, voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_share_the_work_behind_pgbouncer() {
    let (processes, voices) = (budget(6, 10) as usize, budget(3000, 20_000) as usize);
    each_voice_is_asked_about_by_one_process(Variant::Pooled, processes, voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_processes_share_the_work_on_sqlite() {
    each_voice_is_asked_about_by_one_process(Variant::E32, 3, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_processes_look_up_one_voice_once() {
    each_voice_is_asked_about_by_one_process(Variant::D, 20, 1).await;
}

/// The process is stalled as if suspended. Others wait while it claims, and its locks end by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stops_in_a_transaction_blocks_others_only_briefly() {
    for variant in [Variant::A, Variant::Pooled] {
        for (point, is_there) in [
            (
                "store.claim.commit",
                "query LIKE '%INSERT INTO voice_sync.leases%'",
            ),
            (
                "store.apply.commit",
                "EXISTS (SELECT FROM voice_sync.leases)",
            ),
        ] {
            let scene = Scene::new(variant, DECIDED, 20).await;
            let fault = format!("{point}=stall:1h");
            let stopped = scene.command().env("VOICE_SYNC_FAILPOINTS", fault);
            let mut stopped = stopped.start();
            let in_transaction = format!(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'idle in transaction' AND {is_there}"
            );
            while scene.app.number(&in_transaction).await == 0 {
                tokio::task::yield_now().await;
            }
            signal(&stopped, "-STOP");
            let run = scene.command().run().await;
            run.expect_code(0);
            let (claimed, left) = match point {
                "store.claim.commit" => (20, 0),
                _ => (0, 20),
            };
            assert_eq!(run.count("looked_up"), claimed, "{variant:?} {point}");
            assert_eq!(run.count("leased_elsewhere"), left, "{variant:?} {point}");
            stopped.kill().expect("it is killed");
            stopped.wait().expect("it is waited for");
            scene.recover().await;
            assert_eq!(scene.undecided().await, 0, "{variant:?} {point}");
            scene.check().await;
        }
    }
}
