//! A target that misbehaves as a hook tells it.
//!
//! Owns: how each fault looks through the waist. Does not own: when it happens (the hook decides, call by call).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::clock;
use crate::target::{Abilities, Body, Class, DynTarget, Error, Existing, Kind, Page, Result, Target};

/// One call, as the hook sees it before it happens.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// `put`, `get`, `stat`, `list`, `delete`, `check place`, `abilities`.
    pub operation: &'static str,
    /// The key or prefix.
    pub key: &'a str,
    /// Bytes of the body of a put, or asked for by a ranged get; else 0.
    pub length: u64,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It is refused and has no effect.
    Refuse(Kind, Class),
    /// It takes effect, but the reply is lost: [`Kind::Unreachable`], [`Class::Ambiguous`].
    LostReply,
    /// The first byte that is stored or returned is another one, and nobody notices.
    WrongBytes,
    /// The second half of what is stored or returned is missing, and nobody notices.
    ShortBody,
    /// The answer takes this long (tokio's time, so tests may pause it).
    Slow(Duration),
    /// No answer, ever.
    Hang,
}

type Hook = Box<dyn Fn(Call<'_>) -> Fault + Send + Sync>;

/// Wraps a target and spoils the calls that its hook picks.
#[derive(Clone)]
pub struct FaultyTarget {
    inner: DynTarget,
    hook: Arc<Hook>,
    down: Arc<AtomicBool>,
}

impl FaultyTarget {
    /// Asks `hook` before each call to `inner`.
    pub fn new(inner: DynTarget, hook: impl Fn(Call<'_>) -> Fault + Send + Sync + 'static) -> FaultyTarget {
        FaultyTarget { inner, hook: Arc::new(Box::new(hook)), down: Arc::default() }
    }

    /// A target that fails only while [`FaultyTarget::set_down`] says so.
    pub fn outage(inner: DynTarget) -> FaultyTarget {
        FaultyTarget::new(inner, |_| Fault::None)
    }

    /// While down, every call is refused as unreachable.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Does what happens before the call; returns the fault that is left for its end.
    async fn before(&self, call: Call<'_>) -> Result<Fault> {
        let refuse = |kind, class| error(call, kind, class, "refused by the test");
        if self.down.load(Ordering::SeqCst) {
            return Err(refuse(Kind::Unreachable, Class::Temporary));
        }
        match (self.hook)(call) {
            Fault::Refuse(kind, class) => Err(refuse(kind, class)),
            Fault::Slow(duration) => {
                clock::sleep(duration).await;
                Ok(Fault::None)
            }
            Fault::Hang => std::future::pending().await,
            fault => Ok(fault),
        }
    }
}

impl fmt::Debug for FaultyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyTarget").field(&self.inner).finish()
    }
}

fn error(call: Call<'_>, kind: Kind, class: Class, message: &str) -> Error {
    let (operation, key, message) = (call.operation, call.key.to_owned(), message.to_owned());
    Error { kind, class, operation, key, message, retry_after: None }
}

fn after<T>(call: Call<'_>, fault: Fault, result: Result<T>) -> Result<T> {
    match fault {
        Fault::LostReply => Err(error(call, Kind::Unreachable, Class::Ambiguous, "reply lost by the test")),
        _ => result,
    }
}

fn spoil(fault: Fault, bytes: Bytes) -> Bytes {
    match fault {
        Fault::WrongBytes if !bytes.is_empty() => {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            bytes.into()
        }
        Fault::ShortBody => bytes.slice(..bytes.len() / 2),
        _ => bytes,
    }
}

#[async_trait]
impl Target for FaultyTarget {
    async fn put(&self, key: &str, body: Body, existing: Existing) -> Result<()> {
        let call = Call { operation: "put", key, length: body.len() };
        let fault = self.before(call).await?;
        let body = match fault {
            Fault::WrongBytes | Fault::ShortBody => spoil(fault, body.parts().concat().into()).into(),
            _ => body,
        };
        after(call, fault, self.inner.put(key, body, existing).await)
    }

    async fn get(&self, key: &str, length_max: u64) -> Result<Bytes> {
        let call = Call { operation: "get", key, length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.get(key, length_max).await.map(|bytes| spoil(fault, bytes)))
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let call = Call { operation: "get", key, length };
        let fault = self.before(call).await?;
        let bytes = self.inner.get_range(key, offset, length).await.map(|bytes| spoil(fault, bytes));
        match bytes {
            // The waist itself notices a range that is too short.
            Ok(bytes) if bytes.len() as u64 != length => {
                Err(error(call, Kind::Invalid, Class::Rejected, "body cut short by the test"))
            }
            bytes => after(call, fault, bytes),
        }
    }

    async fn stat(&self, key: &str) -> Result<Option<u64>> {
        let call = Call { operation: "stat", key, length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.stat(key).await)
    }

    async fn list(&self, prefix: &str, start: Option<&str>) -> Result<Page> {
        let call = Call { operation: "list", key: prefix, length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.list(prefix, start).await)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let call = Call { operation: "delete", key, length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.delete(key).await)
    }

    async fn check_place(&self) -> Result<()> {
        let call = Call { operation: "check place", key: "", length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.check_place().await)
    }

    async fn abilities(&self) -> Result<Abilities> {
        let call = Call { operation: "abilities", key: "", length: 0 };
        let fault = self.before(call).await?;
        after(call, fault, self.inner.abilities().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::MemoryTarget;

    #[tokio::test]
    async fn each_fault_looks_like_what_it_is() {
        let inner = MemoryTarget::new();
        let target = FaultyTarget::new(Arc::new(inner.clone()), |call| match call.key {
            "refused" => Fault::Refuse(Kind::Full, Class::Temporary),
            "lost" => Fault::LostReply,
            "wrong" => Fault::WrongBytes,
            "short" => Fault::ShortBody,
            _ => Fault::None,
        });
        let put = async |key: &str| target.put(key, Bytes::from_static(b"bytes").into(), Existing::Refuse).await;
        assert_eq!(put("refused").await.unwrap_err().kind, Kind::Full);
        assert_eq!(put("lost").await.unwrap_err().class, Class::Ambiguous);
        put("wrong").await.unwrap();
        put("short").await.unwrap();
        put("good").await.unwrap();
        let stored: Vec<_> = inner.objects().iter().map(|(key, bytes)| (key.clone(), bytes.clone())).collect();
        let expected = [("good", "bytes"), ("lost", "bytes"), ("short", "by"), ("wrong", "cytes")];
        assert_eq!(stored, expected.map(|(key, bytes)| (key.to_owned(), Bytes::from_static(bytes.as_bytes()))));
        target.set_down(true);
        assert_eq!(target.get("good", 10).await.unwrap_err().kind, Kind::Unreachable);
        target.set_down(false);
        assert_eq!(target.get("good", 10).await.unwrap(), "bytes");
        assert_eq!(target.get_range("short", 0, 2).await.unwrap_err().kind, Kind::Invalid);
    }
}
