//! Notes about the answers of a store.
//!
//! Owns: what the store said in headers that OpenDAL does not pass on (`Retry-After`, the checksum it verified).
//! Does not own: connections and bodies (`wire`), deadlines of whole calls (`operator`), what an error means (`classify`).

use std::cell::RefCell;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter, OperationContext};

use super::pace::Pacer;
use super::wire::Wire;

/// Headers in which S3 stores name the checksum of an object, in requests and in answers.
const CHECKSUMS: [&str; 1] = ["x-amz-checksum-crc32c"];

/// What was noted while a call was served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// The status of the last answer.
    pub(super) status: Option<u16>,
    /// Its `Retry-After`, if that was a number of seconds.
    pub(super) retry_after: Option<Duration>,
    /// The store answered with the checksum that we sent: it has the bytes that we meant.
    pub(super) checksum_agreed: bool,
}

tokio::task_local! {
    static NOTES: RefCell<Notes>;
}

/// Runs a call and returns with its result what the transport noted meanwhile.
pub(super) async fn noting<T>(call: impl Future<Output = T>) -> (T, Notes) {
    NOTES.scope(RefCell::default(), async { (call.await, NOTES.with(RefCell::take)) }).await
}

/// Makes the transport of one target.
pub(super) fn context(pacer: Pacer) -> Result<OperationContext, reqwest::Error> {
    Ok(over(Wire::new(pacer)?))
}

/// The same over any transport: tests answer requests themselves.
pub(super) fn over(inner: impl HttpTransport) -> OperationContext {
    OperationContext::new().with_http_transport(HttpTransporter::new(NotingTransport { inner }))
}

struct NotingTransport<T> {
    inner: T,
}

impl<T: HttpTransport> HttpTransport for NotingTransport<T> {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let sent = checksum(request.headers());
        let response = self.inner.fetch(request).await?;
        // Calls outside `noting` (none today) are simply not noted.
        let _ = NOTES.try_with(|notes| {
            *notes.borrow_mut() = Notes {
                status: Some(response.status().as_u16()),
                retry_after: retry_after(response.headers()),
                checksum_agreed: sent.is_some() && sent == checksum(response.headers()),
            }
        });
        Ok(response)
    }
}

fn checksum(headers: &HeaderMap) -> Option<(&'static str, Vec<u8>)> {
    CHECKSUMS.iter().find_map(|name| Some((*name, headers.get(*name)?.as_bytes().to_vec())))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    // Nobody may park a target for more than an hour.
    Some(Duration::from_secs(seconds).min(Duration::from_secs(3600)))
}
