//! A small HTTP server on a backend's own kernel: enough to tell who answered and whether every byte arrived.
//!
//! `GET /` answers with the backend's name, `GET /bytes/N` with N bytes of the [`pattern`], `POST /` with
//! `N same` or `N differ` after comparing the N bytes of the body with the pattern.

use crate::topology::Host;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Serves until it is dropped.
pub struct Server {
    listener: Arc<TcpListener>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    name: String,
    requests: AtomicU64,
    /// The last head of a request, for tests that look at what arrived.
    last_head: Mutex<String>,
    /// TCP_INFO and the like are read from the last connection.
    last: Mutex<Option<TcpStream>>,
}

impl Server {
    /// Listens on the address at which the host serves.
    pub fn start(host: &Host, name: &str) -> Result<Self> {
        let listener = host
            .netns
            .run(|| TcpListener::bind(host.serves()))
            .with_context(|| format!("listening on {} in {}", host.serves(), host.netns))?;
        let listener = Arc::new(listener);
        let state = Arc::new(State { name: name.to_owned(), ..State::default() });
        let thread = std::thread::spawn({
            let (listener, state) = (Arc::clone(&listener), Arc::clone(&state));
            move || {
                // Ends with an error when the listener is shut down.
                while let Ok((stream, _)) = listener.accept() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || {
                        // A client may leave at any moment; what tests look at is what the client saw.
                        let _ = serve(stream, &state);
                    });
                }
            }
        });
        Ok(Self { listener, state, thread: Some(thread) })
    }

    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn last_head(&self) -> String {
        self.state.last_head.lock().expect("no holder panics").clone()
    }

    /// Calls `f` with the server's end of the newest connection that sent a request.
    pub fn with_last<T>(&self, f: impl FnOnce(&TcpStream) -> T) -> Option<T> {
        self.state.last.lock().expect("no holder panics").as_ref().map(f)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open: the listener is still held.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every request of one connection.
fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if input.read_line(&mut head)? == 0 {
                // Not closed by dropping it alone: `last` may hold it as well.
                return stream.shutdown(std::net::Shutdown::Both);
            }
        }
        *state.last.lock().expect("no holder panics") = Some(stream.try_clone()?);
        state.last_head.lock().expect("no holder panics").clone_from(&head);
        state.requests.fetch_add(1, Ordering::SeqCst);
        let path = head.split(' ').nth(1).unwrap_or_default();
        if let Some(n) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n")?;
            send_pattern(&mut stream, n)?;
        } else if head.starts_with("POST") {
            let n = content_length(&head);
            let same = matches_pattern(&mut input, n)?;
            respond(&mut stream, &format!("{n} {}", if same { "same" } else { "differ" }))?;
        } else {
            respond(&mut stream, &state.name)?;
        }
        if head.to_ascii_lowercase().contains("connection: close") {
            return stream.shutdown(std::net::Shutdown::Write);
        }
    }
}

fn respond(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes())
}

/// Value of the Content-Length header, 0 without one.
pub fn content_length(head: &str) -> u64 {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    head.lines().find_map(value).unwrap_or(0)
}

/// Byte `i` of a stream that repeats nowhere within a window, so that a lost, doubled or shifted piece is noticed.
pub fn pattern(i: u64) -> u8 {
    (lb_common::hash::mix64(i / 8 + 1) >> (i % 8 * 8)) as u8
}

/// Sends the first `n` bytes of the pattern.
pub fn send_pattern(out: &mut impl Write, n: u64) -> std::io::Result<()> {
    let mut at = 0;
    while at < n {
        let end = n.min(at + 65_536);
        let chunk: Vec<u8> = (at..end).map(pattern).collect();
        out.write_all(&chunk)?;
        at = end;
    }
    Ok(())
}

/// Reads `n` bytes and tells whether they are the pattern's first.
pub fn matches_pattern(input: &mut impl Read, n: u64) -> std::io::Result<bool> {
    let mut buffer = vec![0; 65_536];
    let (mut at, mut same) = (0, true);
    while at < n {
        let room = buffer.len().min((n - at) as usize);
        let got = input.read(&mut buffer[..room])?;
        if got == 0 {
            return Ok(false);
        }
        same &= buffer[..got].iter().zip(at..).all(|(byte, i)| *byte == pattern(i));
        at += got as u64;
    }
    Ok(same)
}
