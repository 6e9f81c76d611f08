//! A real S3 protocol server on loopback, for tests that need a cloud: `s3s-fs` in a thread of this process.
//!
//! Include it with `#[path = "../support/s3.rs"] mod s3;`. Buckets are directories below its own; objects are files in
//! them, so a test can look at them and spoil them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::S3Result;
use s3s::auth::{S3Auth, SecretKey, SimpleAuth};
use s3s::service::S3ServiceBuilder;
use tokio::sync::oneshot;

/// Keys that may be exchanged while the server runs.
#[derive(Clone)]
struct Accepted {
    access_key: String,
    secret_key: Arc<Mutex<String>>,
}

#[async_trait::async_trait]
impl S3Auth for Accepted {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let secret_key = self.secret_key.lock().unwrap().clone();
        SimpleAuth::from_single(&*self.access_key, secret_key).get_secret_key(access_key).await
    }
}

/// A port of loopback that nobody else gets while this lives, whether a server listens there or not.
#[derive(Clone)]
pub struct Port {
    address: SocketAddr,
    _kept: Arc<OwnedFd>,
}

impl Port {
    /// Any that is free.
    fn any() -> Port {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};
        let kept = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // With this, and as it never listens itself, a server may listen at the same place; who connects before is refused.
        sockopt::set_socket_reuseaddr(&kept, true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        bind(&kept, &any).unwrap();
        let address = getsockname(&kept).unwrap().try_into().unwrap();
        Port { address, _kept: Arc::new(kept) }
    }
}

/// A running server; it stops when it is dropped.
pub struct S3Server {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    /// What the server takes; other than `secret_key` once it was rotated.
    accepted: Accepted,
    port: Port,
    dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Serves `dir` on a free port; it accepts connections when this returns.
    pub fn start(dir: &Path) -> S3Server {
        S3Server::start_at(dir, Port::any())
    }

    /// Serves `dir` at `port`: the same port again, after a server was dropped, is the end of an outage.
    pub fn start_at(dir: &Path, port: Port) -> S3Server {
        let address = port.address;
        std::fs::create_dir_all(dir).unwrap();
        let (access_key, secret_key) = ("test-access-key", "test-secret-key");
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir).unwrap());
        let accepted =
            Accepted { access_key: access_key.to_owned(), secret_key: Arc::new(Mutex::new(secret_key.to_owned())) };
        service.set_auth(accepted.clone());
        let service = service.build();
        let (stop, mut stopped) = oneshot::channel();
        let (ready, bound) = std::sync::mpsc::channel();
        let serve = async move {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            ready.send(listener.local_addr().unwrap()).unwrap();
            loop {
                let socket = tokio::select! {
                    socket = listener.accept() => socket,
                    _ = &mut stopped => return,
                };
                let Ok((socket, _)) = socket else { continue };
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that hangs up is no failure of the server.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        };
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(serve);
                // Dropping the runtime closes the connections: clients see an outage, not a hang.
            })
            .unwrap();
        let address: SocketAddr = bound.recv().unwrap();
        S3Server {
            endpoint: format!("http://{address}"),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            accepted,
            port,
            dir: dir.to_owned(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// The same, kept for another server after this one.
    pub fn port(&self) -> Port {
        self.port.clone()
    }

    /// From here on only this secret is right, as after a vendor's rotation.
    pub fn rotate(&self, secret_key: &str) {
        *self.accepted.secret_key.lock().unwrap() = secret_key.to_owned();
    }

    /// Makes an empty bucket and returns its directory.
    pub fn create_bucket(&self, name: &str) -> PathBuf {
        let bucket = self.dir.join(name);
        std::fs::create_dir_all(&bucket).unwrap();
        bucket
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
