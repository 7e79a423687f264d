use super::client::{ClientError, ask};
use super::server::{Call, ControlSocket, SocketError};
use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(10);

/// A socket whose requests are answered with their own text; the directory goes with it.
fn echo() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/lbd.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let (calls, mut asked) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move { socket.serve(calls).await });
    tokio::spawn(async move {
        while let Some(call) = asked.recv().await {
            let message = format!("{:?}", call.request);
            // The asker may have gone.
            let _ = call.reply.send(Response::Done { message });
        }
    });
    (directory, path)
}

#[tokio::test]
async fn a_question_is_answered() {
    let (_directory, path) = echo();
    for _ in 0..3 {
        let answer = ask(&path, &Request::Status {}, PATIENCE).await.unwrap();
        assert_eq!(answer, Response::Done { message: "Status".into() });
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn several_questions_fit_in_one_connection_and_rubbish_ends_it() {
    let (_directory, path) = echo();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream
        .write_all(b"{\"v\":1,\"verb\":\"status\"}\n{\"v\":1,\"verb\":\"keys_rotate\"}\nrubbish\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], r#"{"v":1,"answer":"done","message":"Status"}"#);
    assert_eq!(lines[1], r#"{"v":1,"answer":"done","message":"KeysRotate"}"#);
    assert!(
        lines[2].starts_with(r#"{"v":1,"answer":"refused","reason":"a message is not understood"#),
        "{text}"
    );
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn an_endless_request_is_cut_off() {
    let (_directory, path) = echo();
    let (mut reader, mut writer) = UnixStream::connect(&path).await.unwrap().into_split();
    let sent = tokio::spawn(async move { writer.write_all(&vec![b'x'; 16 << 20]).await });
    let mut answer = vec![0; 200];
    let length = reader.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.contains("a message is longer than 4194304 bytes"), "{answer}");
    assert!(sent.await.unwrap().is_err(), "nobody reads the rest");
}

#[tokio::test]
async fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
    let (_directory, path) = echo();
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("stop it first"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let dead = directory.path().join("lbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists(), "a killed lbd leaves its socket");
    assert!(matches!(ask(&dead, &Request::Status {}, PATIENCE).await, Err(ClientError::NotRunning { .. })));
    let socket = ControlSocket::bind(&dead).unwrap();
    drop(socket);
    assert!(!dead.exists(), "one that stops removes it");

    std::fs::write(&dead, "not a socket").unwrap();
    assert!(matches!(ControlSocket::bind(&dead), Err(SocketError::NoSocket { .. })));
}

#[tokio::test]
async fn without_an_lbd_the_client_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let error = ask(&directory.path().join("none.sock"), &Request::Status {}, PATIENCE)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no lbd answers at") && error.contains("lbd --config lb.toml"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_dies_is_told_from_one_that_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move { drop(listener.accept().await) });
    let error = ask(&path, &Request::Status {}, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");

    // The loop that would answer has ended: refused, not hung.
    let path = directory.path().join("other.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let (calls, asked) = mpsc::unbounded_channel::<Call>();
    drop(asked);
    tokio::spawn(async move { socket.serve(calls).await });
    let answer = ask(&path, &Request::Status {}, PATIENCE).await.unwrap();
    assert_eq!(answer, Response::Refused(Refused::new("lbd is stopping")));
}

/// Halted, or stuck: the kernel takes the connection all the same.
#[tokio::test(start_paused = true)]
async fn an_lbd_that_does_not_answer_is_not_waited_for_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = ask(&path, &Request::Status {}, PATIENCE).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ClientError::Late { .. }), "{text}");
    for part in [&*path.display().to_string(), "not answered within 10s", "--timeout"] {
        assert!(text.contains(part), "{text}");
    }
    // What takes long by itself gets its time.
    let restart = Request::BackendRestart { backend: "shop/s1".into() };
    let begun = tokio::time::Instant::now();
    assert!(matches!(ask(&path, &restart, PATIENCE).await, Err(ClientError::Late { .. })));
    assert_eq!(begun.elapsed().as_secs(), (PATIENCE + RESTART_PATIENCE).as_secs());
}

/// Both find the socket of a dead one; one of them has it in the end, and can be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_start_together_one_has_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    for round in 0..50 {
        drop(std::os::unix::net::UnixListener::bind(&path));
        let begin = std::sync::Barrier::new(2);
        let bind = || {
            begin.wait();
            ControlSocket::bind(&path)
        };
        let runtime = tokio::runtime::Handle::current();
        let bound = std::thread::scope(|threads| {
            let both = [0, 1].map(|_| {
                threads.spawn(|| {
                    let _runtime = runtime.enter();
                    bind()
                })
            });
            both.map(|thread| thread.join().unwrap())
        });
        let (won, lost): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1), "round {round}");
        let error = lost[0].as_ref().unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok(), "round {round}: reachable");
    }
}
