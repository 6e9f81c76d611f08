//! Notes about the answers of a store, and their bounds.
//!
//! Owns: what the store said in headers that OpenDAL does not pass on (`Retry-After`, the checksum it verified, its clock);
//! how long an answer may be: OpenDAL reads listings and error documents whole, whatever a store claims or sends. (Heads of
//! answers are bounded by the HTTP library: 100 fields, 400 KiB.)
//! Does not own: connections and bodies (`wire`), deadlines of whole calls (`operator`), what an error means (`classify`).

use std::cell::RefCell;
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderMap, HeaderName, Request, Response, header};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter, OperationContext};

use super::pace::Pacer;
use super::wire::Wire;
use crate::clock;

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
    /// Seconds that its clock is ahead of ours, by the `Date` of the answer.
    pub(super) ahead_secs: Option<i64>,
}

/// Bytes of an answer that is no object and no listing.
pub(super) const DOCUMENT_MAX: u64 = 1 << 20;

tokio::task_local! {
    static NOTES: RefCell<Notes>;
    static ANSWER_MAX: u64;
}

/// Runs a call each of whose answers has at most `answer_max` bytes, and returns with its result what the transport noted
/// meanwhile.
pub(super) async fn noting<T>(answer_max: u64, call: impl Future<Output = T>) -> (T, Notes) {
    let noted = NOTES.scope(RefCell::default(), async { (call.await, NOTES.with(RefCell::take)) });
    ANSWER_MAX.scope(answer_max, noted).await
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
                ahead_secs: date(response.headers(), header::DATE).map(|date| date - clock::now().secs()),
            }
        });
        let max = ANSWER_MAX.try_with(|max| *max).unwrap_or(DOCUMENT_MAX);
        Ok(response.map(|body| bounded(body, max)))
    }
}

/// The same body, which ends in an error where it is longer than `max`.
fn bounded(body: HttpBody, max: u64) -> HttpBody {
    body.map_inner(|stream| {
        let mut bytes = 0;
        Box::new(stream.map(move |part| {
            let part = part?;
            bytes += part.len() as u64;
            if bytes > max {
                let message = format!("the answer is longer than the {max} bytes that were expected at most");
                return Err(opendal::Error::new(opendal::ErrorKind::Unexpected, message));
            }
            Ok(part)
        }))
    })
}

fn checksum(headers: &HeaderMap) -> Option<(&'static str, Vec<u8>)> {
    CHECKSUMS.iter().find_map(|name| Some((*name, headers.get(*name)?.as_bytes().to_vec())))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wished = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A moment of the store's clock: what counts is how far it is from the answer's own.
        Err(_) => {
            let answered = date(headers, header::DATE).unwrap_or_else(|| clock::now().secs());
            let seconds = date(headers, header::RETRY_AFTER)?.saturating_sub(answered);
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        }
    };
    // Nobody may park a target for more than an hour.
    Some(wished.min(Duration::from_secs(3600)))
}

/// A date as HTTP has it (RFC 9110: `Sun, 06 Nov 1994 08:49:37 GMT`), in seconds since 1970.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<i64> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_wish_is_a_number_of_seconds_or_a_moment_of_the_stores_own_clock() {
        let moment = |after: &str| {
            let date = (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
            retry_after(&headers(&[date, (header::RETRY_AFTER, after)]))
        };
        assert_eq!(moment("7"), Some(Duration::from_secs(7)));
        assert_eq!(moment("Sun, 06 Nov 1994 08:50:00 GMT"), Some(Duration::from_secs(23)));
        assert_eq!(moment("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO), "it is over");
        assert_eq!(moment("Tue, 06 Nov 2040 08:00:00 GMT"), Some(Duration::from_secs(3600)), "not for years");
        assert_eq!(moment("99999999999999999999"), None);
        assert_eq!(moment("soon"), None);
        assert_eq!(date(&headers(&[(header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT")]), header::DATE), Some(784_111_777));
    }
}
