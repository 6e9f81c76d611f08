//! The daemon's side of the control socket.
//!
//! Owns: who may ask, one task per connection, bounded lines, passing progress on.
//! Does not own: any answer: that is the [`Daemon`]'s.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::protocol::{
    Error, ErrorKind, Flush, Flushed, LINE_MAX, Op, Path as BytePath, Progress, Reply, ReplyBody, Request, Said, Scrub,
    TargetOp, Umount, Unmounted, VERSION, Whereis,
};
use super::{Status, socket};
use crate::scrub;

/// Connections at a time; more wait in the backlog of the socket.
const CONNECTIONS_MAX: usize = 64;
/// A client that does not read its answers for this long is given up.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Where a long request reports how far it is. A report that the client cannot take in time is dropped: the next is newer.
#[derive(Debug, Clone)]
pub struct ProgressSender(mpsc::Sender<Progress>);

impl ProgressSender {
    /// A sender and what it sends to.
    pub fn channel() -> (ProgressSender, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(4);
        (ProgressSender(sender), receiver)
    }

    /// Reports.
    pub fn send(&self, progress: Progress) {
        let _ = self.0.try_send(progress);
    }
}

/// Who answers. The future of a request is dropped when its client goes away.
#[async_trait]
pub trait Daemon: Send + Sync + 'static {
    /// Answers [`Op::Status`].
    async fn status(&self) -> Result<Status, Error>;

    /// Answers [`Op::Whereis`].
    async fn whereis(&self, paths: Vec<BytePath>) -> Result<Vec<Whereis>, Error>;

    /// Answers [`Op::Flush`].
    async fn flush(&self, request: Flush, progress: ProgressSender) -> Result<Flushed, Error>;

    /// Answers [`Op::Umount`]. Once unmounted the daemon ends by itself, also when the client went away.
    async fn umount(&self, request: Umount, progress: ProgressSender) -> Result<Unmounted, Error>;

    /// Answers [`Op::Scrub`].
    async fn scrub(&self, request: Scrub, progress: ProgressSender) -> Result<Vec<scrub::Report>, Error>;

    /// Answers [`Op::ScrubCost`].
    async fn scrub_cost(&self, request: Scrub) -> Result<Vec<scrub::Cost>, Error>;

    /// Answers [`Op::HandOver`].
    async fn hand_over(&self) -> Result<(), Error>;

    /// Answers [`Op::Target`].
    async fn target(&self, op: TargetOp) -> Result<Said, Error>;

    /// Answers [`Op::Reload`].
    async fn reload(&self) -> Result<Said, Error>;

    /// Answers [`Op::Gc`].
    async fn gc(&self, dry_run: bool) -> Result<Said, Error>;
}

/// The control socket of a state directory; it is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    state_dir: PathBuf,
    slots: Arc<Semaphore>,
}

impl Server {
    /// Binds the socket. The caller holds the lock of `state_dir`. Needs a tokio runtime.
    pub fn bind(state_dir: &Path) -> std::io::Result<Server> {
        let listener = socket::bind(state_dir)?;
        listener.set_nonblocking(true)?;
        Ok(Server {
            listener: UnixListener::from_std(listener)?,
            state_dir: state_dir.to_owned(),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// Answers requests until dropped.
    pub async fn serve(&self, daemon: Arc<dyn Daemon>) {
        loop {
            let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = daemon.clone();
                    tokio::spawn(async move {
                        let _slot = slot;
                        if let Err(error) = converse(stream, daemon).await {
                            tracing::debug!(%error, "control connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others will free some.
                    tracing::warn!(%error, "control connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Server {
    /// Waits until every client has its answer and has closed, at most so long.
    pub async fn quiesce(&self, patience: Duration) {
        // One slot is held by `serve` itself, which waits for the next client.
        let all = CONNECTIONS_MAX as u32 - 1;
        let _ = tokio::time::timeout(patience, self.slots.acquire_many(all)).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        socket::remove(&self.state_dir);
    }
}

async fn converse(stream: UnixStream, daemon: Arc<dyn Daemon>) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    if peer != own && peer != 0 {
        let error = Error::failed(format!("this filesystem belongs to user {own}, not to user {peer}"));
        return send(&mut writer, 0, ReplyBody::Error(error)).await;
    }
    let mut reader = BufReader::new(reader);
    while let Some(line) = read_line(&mut reader).await? {
        let request = match parse(&line) {
            Ok(request) => request,
            Err((id, error)) => {
                send(&mut writer, id, ReplyBody::Error(error)).await?;
                continue;
            }
        };
        answer(&mut reader, &mut writer, request, daemon.as_ref()).await?;
    }
    Ok(())
}

/// Runs one request beside its connection: progress goes out as it comes, and a client that closes ends the request.
async fn answer(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    request: Request,
    daemon: &dyn Daemon,
) -> std::io::Result<()> {
    let (progress, mut reports) = ProgressSender::channel();
    let mut work = std::pin::pin!(perform(request.op, daemon, progress));
    loop {
        tokio::select! {
            biased;
            Some(report) = reports.recv() => send(writer, request.id, ReplyBody::Progress(report)).await?,
            result = &mut work => {
                let body = match result {
                    Ok(value) => ReplyBody::Ok(value),
                    Err(error) => ReplyBody::Error(error),
                };
                return send(writer, request.id, body).await;
            }
            // A client may send its next request early; only the end of the stream is acted upon here.
            more = reader.fill_buf(), if reader.buffer().is_empty() => {
                if more?.is_empty() {
                    return Err(std::io::ErrorKind::ConnectionAborted.into());
                }
            }
        }
    }
}

async fn perform(op: Op, daemon: &dyn Daemon, progress: ProgressSender) -> Result<serde_json::Value, Error> {
    match op {
        Op::Status {} => json(daemon.status().await?),
        Op::Whereis { paths } => json(daemon.whereis(paths).await?),
        Op::Flush(request) => json(daemon.flush(request, progress).await?),
        Op::Umount(request) => json(daemon.umount(request, progress).await?),
        Op::Scrub(request) => json(daemon.scrub(request, progress).await?),
        Op::ScrubCost(request) => json(daemon.scrub_cost(request).await?),
        Op::HandOver {} => json(daemon.hand_over().await?),
        Op::Target(op) => json(daemon.target(op).await?),
        Op::Reload {} => json(daemon.reload().await?),
        Op::Gc { dry_run } => json(daemon.gc(dry_run).await?),
    }
}

fn json(value: impl Serialize) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value).map_err(|e| Error::failed(e.to_string()))
}

fn parse(line: &[u8]) -> Result<Request, (u64, Error)> {
    #[derive(serde::Deserialize)]
    struct Head {
        v: u32,
        id: u64,
    }
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let head: Head = serde_json::from_slice(line).map_err(|e| (0, usage(format!("not a request: {e}"))))?;
    if head.v != VERSION {
        let error = usage(format!("request of version {}, this daemon speaks version {VERSION}", head.v))
            .hint("use the tandemfs that mounted the filesystem, or mount again with this one");
        return Err((head.id, error));
    }
    serde_json::from_slice(line).map_err(|e| (head.id, usage(format!("not a request of version {VERSION}: {e}"))))
}

/// Reads one line of at most [`LINE_MAX`] bytes; `None` at the end of the stream.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX as u64).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "line too long or cut off")),
    }
}

async fn send(writer: &mut OwnedWriteHalf, id: u64, body: ReplyBody) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&Reply { id, body })?;
    line.push(b'\n');
    tokio::time::timeout(WRITE_MAX, writer.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::sync::Notify;

    use super::super::Client;
    use super::super::protocol::{Phase, Wait};
    use super::super::status::{Cache, Filesystem, Unreplicated};
    use super::*;

    #[derive(Default)]
    struct Fake {
        dropped: Arc<Notify>,
    }

    struct Signal(Arc<Notify>);

    impl Drop for Signal {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    #[async_trait]
    impl Daemon for Fake {
        async fn status(&self) -> Result<Status, Error> {
            Ok(Status {
                filesystem: Filesystem {
                    name: "n".into(),
                    uuid: "u".into(),
                    mountpoint: "/m".into(),
                    state_dir: "/s".into(),
                    epoch: 1,
                    no_passthrough: None,
                },
                safe: true,
                unreplicated: Unreplicated::default(),
                targets: Vec::new(),
                attention: Vec::new(),
                cache: Cache::default(),
                garbage: Default::default(),
                requests: Default::default(),
                journal_seq: 7,
            })
        }

        async fn whereis(&self, paths: Vec<BytePath>) -> Result<Vec<Whereis>, Error> {
            Err(Error::new(ErrorKind::NotFound, format!("no such file: {}", paths[0])).hint("look again"))
        }

        async fn flush(&self, _: Flush, progress: ProgressSender) -> Result<Flushed, Error> {
            progress.send(Progress { phase: Phase::Draining, targets: Vec::new() });
            tokio::task::yield_now().await;
            Ok(Flushed { seq: 7 })
        }

        async fn umount(&self, _: Umount, _: ProgressSender) -> Result<Unmounted, Error> {
            let _signal = Signal(self.dropped.clone());
            std::future::pending().await
        }

        async fn scrub(&self, _: Scrub, _: ProgressSender) -> Result<Vec<scrub::Report>, Error> {
            Ok(Vec::new())
        }

        async fn scrub_cost(&self, _: Scrub) -> Result<Vec<scrub::Cost>, Error> {
            Ok(Vec::new())
        }

        async fn hand_over(&self) -> Result<(), Error> {
            Ok(())
        }

        async fn target(&self, _: TargetOp) -> Result<Said, Error> {
            Ok(Said::default())
        }

        async fn reload(&self) -> Result<Said, Error> {
            Ok(Said::default())
        }

        async fn gc(&self, _: bool) -> Result<Said, Error> {
            Ok(Said::default())
        }
    }

    /// Serves a fake from a directory whose path is longer than a socket address.
    fn served(test: impl FnOnce(&Path, Arc<Notify>) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("d".repeat(200));
        std::fs::create_dir(&state).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let fake = Fake::default();
        let dropped = fake.dropped.clone();
        runtime.block_on(async {
            let server = Server::bind(&state).unwrap();
            let path = state.clone();
            let test = tokio::task::spawn_blocking(move || test(&path, dropped));
            tokio::select! {
                () = server.serve(Arc::new(fake)) => {}
                result = test => result.unwrap(),
            }
        });
        assert!(!state.join("control.sock").exists(), "the socket goes with the server");
    }

    #[test]
    fn a_socket_is_reached_beyond_108_bytes_of_path_and_only_by_its_owner() {
        served(|state, _| {
            let mode =
                std::os::unix::fs::PermissionsExt::mode(&state.join("control.sock").metadata().unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
            let status: Status = Client::connect(state).unwrap().call(Op::Status {}, |_| ()).unwrap();
            assert_eq!(status.journal_seq, 7);
        });
    }

    #[test]
    fn progress_comes_before_the_answer_and_errors_keep_their_hint() {
        served(|state, _| {
            let mut client = Client::connect(state).unwrap();
            let mut reports = 0;
            let flush = Flush { paths: vec![], wait: Wait::All, timeout_seconds: None };
            let flushed: Flushed = client.call(Op::Flush(flush), |_| reports += 1).unwrap();
            assert_eq!((flushed.seq, reports), (7, 1));
            let error =
                client.call::<Vec<Whereis>>(Op::Whereis { paths: vec![BytePath(vec![b'x'])] }, |_| ()).unwrap_err();
            assert_eq!(error.hint.as_deref(), Some("look again"));
        });
    }

    #[test]
    fn a_request_ends_with_its_client() {
        served(|state, dropped| {
            let mut stream = super::socket::connect(state).unwrap();
            stream
                .write_all(
                    b"{\"v\":1,\"id\":1,\"op\":\"umount\",\"args\":{\"timeout_seconds\":null,\"force\":false}}\n",
                )
                .unwrap();
            drop(stream);
            tokio::runtime::Handle::current().block_on(dropped.notified());
        });
    }

    #[test]
    fn nonsense_gets_an_error_and_the_connection_goes_on() {
        served(|state, _| {
            let mut stream = super::socket::connect(state).unwrap();
            stream.write_all(b"nonsense\n{\"v\":9,\"id\":3,\"op\":\"status\"}\n{\"v\":1,\"id\":4,\"op\":\"hand_over\",\"args\":{}}\n").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[0].contains("not a request"), "{text}");
            assert!(lines[1].contains("version 9") && lines[1].starts_with("{\"id\":3,"), "{text}");
        });
    }

    #[test]
    fn a_line_without_end_does_not_grow_memory() {
        served(|state, _| {
            let mut stream = super::socket::connect(state).unwrap();
            // Broken pipe or full acceptance: either way the daemon stops reading after LINE_MAX.
            let _ = stream.write_all(&vec![b'x'; LINE_MAX + 4096]);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text);
            assert!(text.is_empty());
        });
    }
}
