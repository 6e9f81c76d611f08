//! The client's side of the control socket. Blocking: a command line has nothing else to do meanwhile.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::protocol::{Error, ErrorKind, LINE_MAX, Op, Progress, Reply, ReplyBody, Request, VERSION};
use super::socket;

/// A daemon that works says something every second; one that is silent for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A connection to a daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    id: u64,
}

impl Client {
    /// Connects to the daemon that works on `state_dir`.
    pub fn connect(state_dir: &Path) -> Result<Client, Error> {
        let connect = || {
            let stream = socket::connect(state_dir)?;
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            stream.set_write_timeout(Some(SILENCE_MAX))?;
            Ok(stream)
        };
        let stream = connect().map_err(|e: std::io::Error| {
            Error::new(ErrorKind::Unreachable, format!("no daemon answers in {}: {e}", state_dir.display()))
                .hint("mount it again with \"tandemfs mount\"; what was written goes on from where it stopped")
        })?;
        Ok(Client { stream: BufReader::new(stream), id: 0 })
    }

    /// Asks `op` and waits for its end; `progress` is called with every report on the way.
    pub fn call<T: DeserializeOwned>(&mut self, op: Op, mut progress: impl FnMut(Progress)) -> Result<T, Error> {
        self.id += 1;
        let request = Request { v: VERSION, id: self.id, op };
        let mut line = serde_json::to_vec(&request).map_err(|e| Error::failed(e.to_string()))?;
        line.push(b'\n');
        if line.len() > LINE_MAX {
            return Err(Error::new(ErrorKind::Usage, "too many paths in one request")
                .hint("name a directory above them, or fewer at a time"));
        }
        self.stream.get_mut().write_all(&line).map_err(lost)?;
        loop {
            let reply = self.reply()?;
            if reply.id != self.id {
                continue;
            }
            match reply.body {
                ReplyBody::Progress(report) => progress(report),
                ReplyBody::Error(error) => return Err(error),
                ReplyBody::Ok(value) => {
                    return serde_json::from_value(value)
                        .map_err(|e| Error::failed(format!("the daemon's answer makes no sense: {e}")));
                }
            }
        }
    }

    fn reply(&mut self) -> Result<Reply, Error> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_MAX as u64).read_until(b'\n', &mut line).map_err(lost)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Err(Error::new(ErrorKind::Unreachable, "the daemon closed the connection before it answered")
                .hint("its log is in the state directory: daemon.log"));
        }
        serde_json::from_slice(&line).map_err(|e| {
            Error::failed(format!("the daemon's answer makes no sense: {e}"))
                .hint("daemon and command may be of different versions: mount again")
        })
    }
}

fn lost(error: std::io::Error) -> Error {
    let message = match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("the daemon has been silent for {} s", SILENCE_MAX.as_secs())
        }
        _ => format!("the connection to the daemon broke: {error}"),
    };
    Error::new(ErrorKind::Unreachable, message).hint("its log is in the state directory: daemon.log")
}
