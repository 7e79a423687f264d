//! Connections: how requests come in, and how they end.

use super::*;

#[tokio::test]
async fn requests_in_one_segment_and_in_single_bytes_are_the_same() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let request = "PUT /session/a HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n7";
    for byte in request.split("").filter(|byte| !byte.is_empty()) {
        client.send(byte).await;
    }
    assert_eq!(client.answer("PUT").await.json()["state"], json!({"a": 7}));
    client.send(&request.repeat(3)).await;
    for _ in 0..3 {
        assert_eq!(client.answer("PUT").await.status, 201);
    }
    client.send("nonsense\r\n\r\n").await;
    assert_eq!(client.answer("GET").await.status, 400);
}

#[tokio::test]
async fn a_client_that_closed_its_half_still_gets_its_answer() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    client.send("PUT /session/a HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n7").await;
    client.0.get_mut().shutdown().await.unwrap();
    assert_eq!(client.answer("PUT").await.status, 201);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way_and_closes_the_rest() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut idle = server.client().await;
    assert_eq!(idle.ask("GET", "/healthz", None, None).await.status, 200);
    let mut busy = server.client().await;
    busy.send("PUT /session/a HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n1").await;
    // Under way for certain: another connection was served after it.
    assert_eq!(idle.ask("GET", "/healthz", None, None).await.status, 200);
    // In the listener's queue or just accepted, request and all.
    let mut late = server.client().await;
    late.send("PUT /session/b HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n1").await;
    server.stop.send(()).unwrap();
    assert!(idle.is_closed().await);
    let answer = late.answer("PUT").await;
    assert_eq!((answer.status, answer.header("connection")), (201, Some("close")));
    busy.send("2").await;
    let answer = busy.answer("PUT").await;
    assert_eq!((answer.status, &answer.json()["state"]["a"]), (201, &json!(12)));
    assert!(busy.is_closed().await && late.is_closed().await);
    server.served.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_closed() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let (mut silent, mut idle) = (server.client().await, server.client().await);
    assert_eq!(idle.ask("GET", "/healthz", None, None).await.status, 200);
    // From here on time passes as soon as nobody has anything to do.
    tokio::time::pause();
    for client in [&mut silent, &mut idle] {
        let closed = tokio::time::timeout(HEAD_TIMEOUT * 2, client.is_closed()).await;
        assert_eq!(closed, Ok(true));
    }
}

#[tokio::test]
async fn half_sent_requests_of_one_address_leave_places_for_others() {
    let mut shop = Shop::new();
    shop.context.connections = Connections { total: 8, per_client: 4 };
    let server = shop.start(3, 1);
    let mut half = Vec::new();
    for _ in 0..4 {
        let mut client = server.client().await;
        client.send("GET /session HTTP/1.1\r\nX: ").await;
        half.push(client);
    }
    let refused = server.client().await.answer("GET").await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.json()["hint"].is_string());
    assert_eq!(shop.context.counters.client_refused.load(Ordering::Relaxed), 1);
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = Client(BufReader::new(other.connect(server.addr).await.unwrap()));
    assert_eq!(other.ask("GET", "/healthz", None, None).await.status, 200);
    half.pop().unwrap().send("1\r\n\r\n").await;
    // Its place is free as soon as the server has noticed.
    while server.client().await.ask("GET", "/healthz", None, None).await.status == 429 {}
}

#[tokio::test]
async fn a_head_without_end_is_not_kept() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    client.send(&format!("GET /session HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD))).await;
    assert_eq!(client.answer("GET").await.status, 431);
}
