//! Lists of voices: by id, in pages, and what they refuse.

use serde_json::json;
use voice_sync_simulator::Options;

use super::Api;

fn query(ids: &[String]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("voice_ids={id}")).collect();
    format!("/v2/voices?page_size=100&{}", ids.join("&"))
}

#[tokio::test]
async fn list_by_id_returns_only_existing_listed_voices() {
    let api = Api::plain().await;
    api.simulator.add_voice("anna", "Anna");
    api.simulator.add_voice("bert", "Bert [missing]");
    api.simulator.add_voice("cleo", "Cleo [unlisted]");
    let ids = [
        "sim-ready-1",
        "anna",
        "bert",
        "cleo",
        "sim-missing-1",
        "nobody",
        "anna",
    ];
    let reply = api.get(&query(&ids.map(str::to_owned))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.ids(), ["sim-ready-1", "anna"]);
    assert_eq!(reply.premade().len(), 2);
    assert_eq!(reply.body["has_more"], false);
    assert_eq!(reply.body["total_count"], 2);
    assert_eq!(reply.body["next_page_token"], json!(null));
    assert_eq!(api.simulator.requests()[0].voice_ids, ids);
    assert_eq!(api.voice("cleo").await["name"], "Cleo [unlisted]");
}

#[tokio::test]
async fn premade_voices_are_listed_exactly_once() {
    let options = Options {
        default_voices: 3,
        ..Options::default()
    };
    let api = Api::start(options).await;
    let unasked = api.get("/v2/voices").await;
    let premade = unasked.premade();
    assert_eq!(premade.len(), 3);
    assert!(premade.iter().all(|id| id.len() == 20));
    assert_eq!(api.voice(premade[0]).await["category"], "premade");

    let asked = api.get(&query(&[premade[1].to_owned()])).await;
    let mut found = asked.premade();
    found.sort_unstable();
    assert_eq!(found, premade);
}

#[tokio::test]
async fn pages_contain_every_voice_once() {
    let api = Api::plain().await;
    let ids: Vec<_> = (0..25).map(|number| format!("voice{number:02}")).collect();
    for id in &ids {
        api.simulator.add_voice(id, "Anna");
    }
    for base in [query(&ids), "/v2/voices?search=x&sort=name".to_owned()] {
        let base = base.replace("page_size=100&", "");
        let mut found = Vec::new();
        let mut sizes = Vec::new();
        let mut path = base.clone();
        loop {
            let reply = api.get(&path).await;
            assert_eq!(reply.body["total_count"], 25);
            assert_eq!(reply.premade().len(), if sizes.is_empty() { 2 } else { 0 });
            sizes.push(reply.ids().len());
            found.extend(reply.ids().into_iter().map(str::to_owned));
            let token = reply.body["next_page_token"].as_str();
            assert_eq!(reply.body["has_more"], token.is_some());
            let Some(token) = token else { break };
            path = format!("{base}&next_page_token={token}");
        }
        assert_eq!(sizes, [10, 10, 5]);
        assert_eq!(found, ids);
    }
}

#[tokio::test]
async fn deletion_between_two_pages_hides_no_other_voice() {
    let api = Api::plain().await;
    for id in ["a", "b", "c", "d"] {
        api.simulator.add_voice(id, id);
    }
    let first = api.get("/v2/voices?page_size=2").await;
    assert_eq!(first.ids(), ["a", "b"]);
    assert!(api.simulator.remove_voice("a"));
    let token = first.body["next_page_token"].as_str().unwrap();
    let second = api
        .get(&format!("/v2/voices?page_size=2&next_page_token={token}"))
        .await;
    assert_eq!(second.ids(), ["c", "d"]);
    assert_eq!(second.body["total_count"], 3);
}

#[tokio::test]
async fn total_count_is_zero_if_not_requested() {
    let api = Api::plain().await;
    api.simulator.add_voice("anna", "Anna");
    let reply = api.get("/v2/voices?include_total_count=false").await;
    assert_eq!(reply.body["total_count"], 0);
    let reply = api.get("/v2/voices?include_total_count=True").await;
    assert_eq!(reply.body["total_count"], 1);
}

#[tokio::test]
async fn rejects_invalid_query_parameters() {
    let api = Api::plain().await;
    let hundred: Vec<_> = (0..100)
        .map(|number| format!("sim-ready-{number}"))
        .collect();
    assert_eq!(api.get(&query(&hundred)).await.ids().len(), 100);
    let more = query(&[hundred.as_slice(), &["anna".to_owned()]].concat());
    for (path, argument) in [
        (more.as_str(), "voice_ids"),
        ("/v2/voices?page_size=0", "page_size"),
        ("/v2/voices?page_size=-1", "page_size"),
        ("/v2/voices?page_size=101", "page_size"),
        ("/v2/voices?page_size=ten", "page_size"),
        (
            "/v2/voices?include_total_count=perhaps",
            "include_total_count",
        ),
        ("/v2/voices?next_page_token=x", "next_page_token"),
    ] {
        let reply = api.get(path).await;
        assert_eq!(reply.status, 422, "{path}");
        let detail = &reply.body["detail"][0];
        assert_eq!(detail["loc"], json!(["query", argument]), "{path}");
        assert!(
            detail["msg"].is_string() && detail["type"].is_string(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn disabled_v2_list_leaves_the_v1_list() {
    let options = Options {
        list_enabled: false,
        ..Options::default()
    };
    let api = Api::start(options).await;
    api.simulator.add_voice("anna", "Anna");
    api.simulator.add_voice("bert", "Bert [unlisted]");
    assert_eq!(api.get("/v2/voices").await.status, 404);
    let old = api.get("/v1/voices").await;
    assert_eq!((old.ids(), old.premade().len()), (vec!["anna"], 2));
}
