//! A network path that can be broken: a TCP proxy on loopback between a daemon and a server.
//!
//! Faults are set while connections run; they act on each piece of traffic as it passes. Threads and blocking sockets:
//! what is tested is the other side.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What goes wrong on the path. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Every piece of traffic is under way for so long, each way.
    pub latency: Duration,
    /// Bytes per second, each way, of all connections together; 0 = no limit.
    pub bytes_per_second: u64,
    /// Connections are refused, and those that exist are reset.
    pub refuse: bool,
    /// Nothing passes, and nobody is told.
    pub silent: bool,
    /// Every request is answered 503 with `Retry-After: 1`.
    pub storm: bool,
    /// After so many bytes that went up, on average, the connection that carries them is reset, at random; 0 = never.
    pub reset_every: u64,
    /// An answer ends after so many bytes; 0 = never.
    pub truncate_at: u64,
    /// One bit of an answer is flipped at this byte; 0 = never.
    pub flip_at: u64,
    /// The length that an answer states is one digit off.
    pub wrong_length: bool,
}

/// A running proxy; it ends with its connections when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    upstream: SocketAddr,
    faults: Mutex<Faults>,
    ended: AtomicBool,
    /// Both ends of every connection.
    connections: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
    /// Bytes that went up, or were on their way when their connection was reset.
    sent: AtomicU64,
    /// Bytes that came down.
    answered: AtomicU64,
    /// Where the next reset strikes, in bytes that go up; and the state of what draws them.
    next_reset: Mutex<(u64, u64)>,
    /// Until when the path is taken, up and down, where it is narrow.
    taken: [Mutex<Instant>; 2],
    resets: AtomicU64,
    refused: AtomicU64,
}

impl Proxy {
    /// A path to `upstream` on which nothing is wrong yet.
    pub fn to(upstream: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            next_reset: Mutex::new((0, 1)),
            taken: [Instant::now(); 2].map(Mutex::new),
            resets: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        let acceptor = std::thread::spawn(move || {
            for (number, client) in (0..).zip(listener.incoming()) {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    accepting.clone().accept(number, client);
                }
            }
        });
        Proxy { address, shared, acceptor: Some(acceptor) }
    }

    /// From now on these faults, and no others. Connections that exist are reset, so that requests meet them.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
        self.shared.draw_reset(&faults);
        self.reset_all();
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        for [client, server] in connections.into_values() {
            self.shared.count_unread(&client);
            reset(&client, &server);
        }
    }

    /// Bytes that went up so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes that came down so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Connections that were reset or refused, or whose requests were answered 503.
    pub fn harmed(&self) -> u64 {
        self.shared.resets.load(Ordering::SeqCst) + self.shared.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.reset_all();
    }
}

impl Shared {
    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    /// What a sender gave away and nobody read was sent all the same.
    fn count_unread(&self, client: &TcpStream) {
        let unread = rustix::io::ioctl_fionread(client).unwrap_or(0);
        self.sent.fetch_add(unread, Ordering::SeqCst);
    }

    /// Draws where the next reset strikes: anywhere up to twice the average.
    fn draw_reset(&self, faults: &Faults) {
        let mut next = self.next_reset.lock().unwrap();
        next.1 = next.1.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        next.0 = self.sent.load(Ordering::SeqCst) + (next.1 >> 20) % (2 * faults.reset_every).max(1);
    }

    /// True for the one whose bytes reach the place of the next reset.
    fn strikes(&self, sent: u64, faults: &Faults) -> bool {
        let strikes = sent >= self.next_reset.lock().unwrap().0;
        if strikes {
            self.draw_reset(faults);
        }
        strikes
    }

    fn accept(self: Arc<Shared>, number: u64, client: TcpStream) {
        let faults = self.faults();
        if faults.refuse {
            self.refused.fetch_add(1, Ordering::SeqCst);
            reset(&client, &client);
            return;
        }
        if faults.storm {
            self.refused.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let read = storm(client);
                self.sent.fetch_add(read, Ordering::SeqCst);
            });
            return;
        }
        let Ok(server) = TcpStream::connect(self.upstream) else { return reset(&client, &client) };
        let pair = || Some([client.try_clone().ok()?, server.try_clone().ok()?]);
        let (Some(kept), Some([from_client, from_server])) = (pair(), pair()) else { return };
        self.connections.lock().unwrap().insert(number, kept);
        let (up, down) = (self.clone(), self);
        std::thread::spawn(move || up.pump(number, from_client, server, true));
        std::thread::spawn(move || down.pump(number, from_server, client, false));
    }

    /// Passes traffic one way until an end closes, or a fault ends it.
    fn pump(&self, number: u64, mut from: TcpStream, to: TcpStream, up: bool) {
        let Ok(out) = to.try_clone() else { return reset(&from, &to) };
        // What is on its way: as much as a path of a second holds. Latency delays each piece and slows none.
        let (line, pieces) = std::sync::mpsc::sync_channel(256);
        let delivery = std::thread::spawn(move || deliver(out, pieces));
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0u64;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            let faults = self.faults();
            while self.faults().silent && !self.ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            if let Some(nanos) = (count as u64 * 1_000_000_000).checked_div(faults.bytes_per_second) {
                let until = {
                    let mut taken = self.taken[usize::from(up)].lock().unwrap();
                    *taken = (*taken).max(Instant::now()) + Duration::from_nanos(nanos);
                    *taken
                };
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            let piece = &mut buffer[..count];
            if up {
                let sent = self.sent.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
                if faults.reset_every > 0 && self.strikes(sent, &faults) {
                    self.count_unread(&from);
                    self.resets.fetch_add(1, Ordering::SeqCst);
                    reset(&from, &to);
                    break;
                }
            } else {
                self.answered.fetch_add(count as u64, Ordering::SeqCst);
            }
            if !up && spoil(&faults, piece, passed) {
                reset(&from, &to);
                break;
            }
            if line.send((Instant::now() + faults.latency, piece.to_vec())).is_err() {
                reset(&from, &to);
                break;
            }
            passed += count as u64;
        }
        drop(line);
        let _ = delivery.join();
        if !up {
            self.connections.lock().unwrap().remove(&number);
        }
    }
}

/// Delivers pieces when they are due, then closes.
fn deliver(mut to: TcpStream, pieces: Receiver<(Instant, Vec<u8>)>) {
    for (due, piece) in pieces {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Spoils a piece of an answer that begins at byte `at`; true: the answer ends here.
fn spoil(faults: &Faults, piece: &mut [u8], at: u64) -> bool {
    let end = at + piece.len() as u64;
    if (at..end).contains(&faults.flip_at) && faults.flip_at > 0 {
        piece[(faults.flip_at - at) as usize] ^= 1;
    }
    if faults.wrong_length
        && let Some(found) = piece.windows(16).position(|window| window.eq_ignore_ascii_case(b"content-length: "))
    {
        // 1 becomes 2, 8 becomes 9, 9 becomes 8: as long as before, and wrong.
        let digit = &mut piece[found + 16..][..1][0];
        *digit = if *digit == b'9' { b'8' } else { *digit + 1 };
    }
    faults.truncate_at > 0 && end >= faults.truncate_at
}

/// Answers one request 503 and closes. Returns how many bytes came.
fn storm(mut client: TcpStream) -> u64 {
    let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    let _ = client.write_all(
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    // What is still being sent is read, or the answer would be lost to a reset.
    let _ = client.shutdown(Shutdown::Write);
    let (mut read, mut buffer) = (head.len() as u64, vec![0; 64 << 10]);
    while let Ok(count) = client.read(&mut buffer)
        && count > 0
    {
        read += count as u64;
    }
    read
}

/// Closes both ends with a reset.
fn reset(one: &TcpStream, other: &TcpStream) {
    for end in [one, other] {
        let _ = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO));
        let _ = end.shutdown(Shutdown::Both);
    }
}
