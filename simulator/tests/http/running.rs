//! What a simulator notes, and how it stops.

use std::time::Duration;

use reqwest::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use voice_sync_simulator::{Answer, Counts, Options, Request};

use super::Api;

#[tokio::test]
async fn requests_are_counted_and_recorded() {
    let api = Api::plain().await;
    api.get("/v2/voices?voice_ids=a&voice_ids=b%20c&page_size=5")
        .await;
    api.get("/v1/voices/nobody?with_settings=true").await;
    api.add(&[("name", "Anna"), ("files", "ID3")]).await;
    api.delete("/v1/voices/nobody").await;
    api.speak("nobody", "Hi").await;
    api.get("/v1/voices").await;
    api.get("/v1/voices/").await;
    let counts = Counts {
        list: 1,
        single: 1,
        add: 1,
        delete: 1,
        speech: 1,
        other: 2,
    };
    assert_eq!(api.simulator.counts(), counts);

    let requests = api.simulator.requests();
    assert!(requests.is_sorted_by_key(|request| request.at));
    let expected = |method: &str, path: &str, ids: &[&str], status| Request {
        at: Duration::ZERO,
        method: method.to_owned(),
        path: path.to_owned(),
        voice_ids: ids.iter().map(ToString::to_string).collect(),
        status: Some(status),
        user_agent: Some("test/1".to_owned()),
        has_key: true,
    };
    let noted: Vec<_> = requests
        .into_iter()
        .map(|request| Request {
            at: Duration::ZERO,
            ..request
        })
        .collect();
    assert_eq!(
        noted,
        [
            expected("GET", "/v2/voices", &["a", "b c"], 200),
            expected("GET", "/v1/voices/nobody", &["nobody"], 400),
            expected("POST", "/v1/voices/add", &[], 200),
            expected("DELETE", "/v1/voices/nobody", &["nobody"], 400),
            expected("POST", "/v1/text-to-speech/nobody", &["nobody"], 400),
            expected("GET", "/v1/voices", &[], 200),
            expected("GET", "/v1/voices/", &[], 404),
        ]
    );

    api.simulator.forget_requests();
    assert_eq!(api.simulator.counts(), Counts::default());
    assert!(api.simulator.requests().is_empty());
}

#[tokio::test]
async fn requests_are_counted_without_being_recorded() {
    let options = Options {
        record_requests: false,
        ..Options::default()
    };
    let api = Api::start(options).await;
    api.get("/v2/voices").await;
    assert_eq!(api.simulator.counts().list, 1);
    assert!(api.simulator.requests().is_empty());
}

#[tokio::test]
async fn disconnected_request_is_recorded_without_a_status() {
    let api = Api::plain().await;
    api.simulator.script(|request| {
        let slow = request.path.ends_with("slow");
        slow.then(|| Answer::empty(204).after(Duration::from_secs(3600)))
    });
    let slow = tokio::spawn(api.get("/v1/voices/slow"));
    api.arrived(1).await;
    slow.abort();
    assert_eq!(api.get("/v1/voices/sim-ready-1").await.status, 200);
    let statuses: Vec<_> = api
        .simulator
        .requests()
        .iter()
        .map(|seen| seen.status)
        .collect();
    assert_eq!(statuses, [None, Some(200)]);
}

#[tokio::test]
async fn supports_http_2_besides_http_1() {
    let api = Api::plain().await;
    let client = crate::client_builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let url = api.url("/v1/voices/sim-ready-1");
    let response = client
        .get(url)
        .header("xi-api-key", "any")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (response.version(), response.status().as_u16()),
        (Version::HTTP_2, 200)
    );
    assert!(response.text().await.unwrap().contains("sim-ready-1"));
}

#[tokio::test]
async fn stopping_answers_open_requests_and_closes_idle_connections() {
    let options = Options {
        latency: Duration::from_secs(3600),
        ..Options::default()
    };
    let api = Api::start(options).await;
    let address = api.simulator.url().replace("http://", "");
    let mut idle = TcpStream::connect(&address).await.unwrap();
    let mut busy = TcpStream::connect(&address).await.unwrap();
    let request = "GET /v1/voices/sim-ready-1 HTTP/1.1\r\nhost: sim\r\nxi-api-key: any\r\n\r\n";
    busy.write_all(request.as_bytes()).await.unwrap();
    api.arrived(1).await;
    api.simulator.stop().await;

    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert!(TcpStream::connect(&address).await.is_err());
}

#[tokio::test]
async fn dropping_the_simulator_stops_it() {
    let api = Api::plain().await;
    let address = api.simulator.url().replace("http://", "");
    drop(api);
    while TcpStream::connect(&address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn address_in_use_is_an_error() {
    let api = Api::plain().await;
    let address = api.simulator.url().replace("http://", "").parse().unwrap();
    let second = voice_sync_simulator::Simulator::start(address, Options::default()).await;
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
