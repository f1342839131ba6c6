//! Several processes on one backlog.

use futures_util::future::join_all;

use crate::budget;
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
async fn many_processes_on_postgresql_share_the_work() {
    let (processes, voices) = (budget(6, 10) as usize, budget(3000, 20_000) as usize);
    each_voice_is_asked_about_by_one_process(Variant::A, processes, voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_behind_pgbouncer_share_the_work() {
    let (processes, voices) = (budget(6, 10) as usize, budget(3000, 20_000) as usize);
    each_voice_is_asked_about_by_one_process(Variant::Pooled, processes, voices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_processes_on_sqlite_share_the_work() {
    each_voice_is_asked_about_by_one_process(Variant::E32, 3, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_processes_ask_about_one_voice_once() {
    each_voice_is_asked_about_by_one_process(Variant::D, 20, 1).await;
}
