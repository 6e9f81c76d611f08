use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::{Method, Request, Response, StatusCode};
use opendal::{HttpBody, HttpTransport};
use parking_lot::Mutex;

use super::*;
use crate::target::transport;

struct FakeStore<F> {
    log: Arc<Mutex<Vec<Seen>>>,
    answer: F,
}

#[derive(Debug)]
struct Seen {
    method: Method,
    path: String,
    parts: Vec<usize>,
    create_only: bool,
}

impl<F> HttpTransport for FakeStore<F>
where
    F: Fn(&Request<Buffer>) -> Option<Response<&'static str>> + Send + Sync + Unpin + 'static,
{
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        self.log.lock().push(Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            parts: request.body().clone().map(|part| part.as_ptr() as usize).collect(),
            create_only: request.headers().contains_key("if-none-match"),
        });
        let Some(response) = (self.answer)(&request) else {
            return std::future::pending().await;
        };
        let (parts, body) = response.into_parts();
        let body = futures::stream::iter([Ok(Buffer::from(body))]);
        Ok(Response::from_parts(parts, HttpBody::new(body, None)))
    }
}

/// A store whose every answer goes on and on; counts the bytes that were taken.
struct Endless {
    status: StatusCode,
    taken: Arc<AtomicU64>,
}

impl HttpTransport for Endless {
    async fn fetch(&self, _request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let taken = Arc::clone(&self.taken);
        let part = Buffer::from(vec![b' '; 64 << 10]);
        let body = futures::stream::repeat_with(move || {
            taken.fetch_add(part.len() as u64, Ordering::Relaxed);
            Ok(part.clone())
        });
        Ok(answer(self.status).body(HttpBody::new(body, None)).unwrap())
    }
}

#[tokio::test]
async fn no_answer_is_read_without_end() {
    for status in [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::NOT_FOUND, StatusCode::FORBIDDEN] {
        let taken = Arc::new(AtomicU64::new(0));
        let target = operator(Endless { status, taken: Arc::clone(&taken) });
        let bytes = |max: u64| {
            let taken = taken.swap(0, Ordering::Relaxed);
            assert!(taken <= max + (128 << 10), "{status}: {taken} bytes were taken");
        };
        target.get("chunks/aa/aa", 1000).await.unwrap_err();
        bytes(DOCUMENT_MAX + 1000);
        target.get_range("chunks/aa/aa", 10, 1000).await.unwrap_err();
        bytes(DOCUMENT_MAX + 1000);
        target.list("chunks/", None).await.unwrap_err();
        bytes(LISTING_MAX);
        let _ = target.put("chunks/aa/aa", body(), Existing::Replace).await;
        bytes(2 * DOCUMENT_MAX);
        let _ = target.delete("chunks/aa/aa").await;
        bytes(DOCUMENT_MAX);
    }
}

#[tokio::test]
async fn the_clock_of_the_store_is_told_by_its_answers() {
    let (target, _) = store(|_| {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        Some(answer(StatusCode::OK).header("date", date).header("content-length", "1").body("").unwrap())
    });
    assert_eq!(target.ahead_secs(), None);
    target.stat("chunks/aa/aa").await.unwrap();
    let expected = 784_111_777 - crate::clock::now().secs();
    assert!(target.ahead_secs().is_some_and(|ahead| (ahead - expected).abs() < 60));
}

fn store(
    answer: impl Fn(&Request<Buffer>) -> Option<Response<&'static str>> + Send + Sync + Unpin + 'static,
) -> (OperatorTarget, Arc<Mutex<Vec<Seen>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    (operator(FakeStore { log: Arc::clone(&log), answer }), log)
}

fn operator(transport: impl HttpTransport) -> OperatorTarget {
    opendal::init_default_registry();
    let options = [
        ("bucket", "bucket"),
        ("endpoint", "http://store"),
        ("region", "r"),
        ("access_key_id", "a"),
        ("secret_access_key", "s"),
        ("checksum_algorithm", "crc32c"),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned()));
    OperatorTarget::new(Operator::via_iter("s3", options).unwrap().with_context(transport::over(transport)))
}

fn answer(status: StatusCode) -> http::response::Builder {
    Response::builder().status(status)
}

/// A store that verifies the checksum and says so.
fn honest(request: &Request<Buffer>) -> Option<Response<&'static str>> {
    let checksum = request.headers().get("x-amz-checksum-crc32c")?;
    Some(answer(StatusCode::OK).header("x-amz-checksum-crc32c", checksum).body("").unwrap())
}

fn body() -> Body {
    Body::new(vec![Bytes::from(vec![1; 6 << 20]), Bytes::from_static(b"second"), Bytes::from(vec![3; 6 << 20])])
}

#[tokio::test]
async fn an_object_is_one_put_of_the_parts_as_they_lie_in_memory() {
    let (target, log) = store(honest);
    let body = body();
    let expected: Vec<usize> = body.parts().iter().map(|part| part.as_ptr() as usize).collect();
    target.put("chunks/aa/aa", body, Existing::Replace).await.unwrap();
    let log = log.lock();
    assert_eq!(log.len(), 1, "no multipart, and no look-up after a checksum that agreed: {log:?}");
    assert_eq!((&log[0].method, log[0].path.as_str()), (&Method::PUT, "/bucket/chunks/aa/aa"));
    assert_eq!(log[0].parts, expected);
    assert!(!log[0].create_only);
}

#[tokio::test]
async fn without_a_checksum_the_length_is_looked_up() {
    for (length, confirmed) in [("12582918", true), ("12582917", false)] {
        let (target, log) = store(move |request| {
            Some(match *request.method() {
                Method::HEAD => answer(StatusCode::OK).header("content-length", length).body("").unwrap(),
                _ => answer(StatusCode::OK).header("x-amz-checksum-crc32c", "AAAAAA==").body("").unwrap(),
            })
        });
        let put = target.put("chunks/aa/aa", body(), Existing::Replace).await;
        assert_eq!(put.is_ok(), confirmed, "{put:?}");
        assert_eq!(log.lock().len(), 2);
        if let Err(error) = put {
            assert_eq!((error.kind, error.class), (Kind::Invalid, Class::Temporary));
        }
    }
}

#[tokio::test]
async fn a_put_whose_proof_is_missing_is_ambiguous() {
    let (target, _) = store(|request| {
        let status = if request.method() == Method::HEAD { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        Some(answer(status).body("").unwrap())
    });
    let error = target.put("chunks/aa/aa", body(), Existing::Replace).await.unwrap_err();
    assert_eq!((error.operation, error.class), ("put", Class::Ambiguous));
}

#[tokio::test]
async fn the_wish_to_slow_down_is_passed_on() {
    let (target, log) = store(|_| {
        let slow = "<Error><Code>SlowDown</Code><Message>m</Message><Resource/><RequestId/></Error>";
        Some(answer(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "3").body(slow).unwrap())
    });
    let error = target.put("chunks/aa/aa", body(), Existing::Replace).await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::Throttled, Class::Temporary));
    assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    assert_eq!(log.lock().len(), 1, "attempts are the planner's");
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let (mut target, _) = store(|_| None);
    target.patience = Duration::from_millis(10);
    let error = target.put("chunks/aa/aa", Body::default(), Existing::Replace).await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::Unreachable, Class::Ambiguous));
    let error = target.stat("chunks/aa/aa").await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::Unreachable, Class::Temporary));
}

#[tokio::test]
async fn t8_a_store_that_accepts_a_second_create_is_looked_up_first() {
    let (target, log) = store(|request| match *request.method() {
        Method::HEAD => Some(answer(StatusCode::NOT_FOUND).body("").unwrap()),
        Method::DELETE => Some(answer(StatusCode::NO_CONTENT).body("").unwrap()),
        _ => honest(request),
    });
    target.put("writers/1", Bytes::from_static(b"x").into(), Existing::Refuse).await.unwrap();
    assert!(!target.abilities().await.unwrap().create_only);
    let log = log.lock();
    let last: Vec<_> = log.iter().rev().take(2).map(|seen| (&seen.method, seen.create_only)).collect();
    assert_eq!(last, [(&Method::PUT, false), (&Method::HEAD, false)]);
    assert_eq!(log.iter().filter(|seen| seen.path.contains("/tmp/probe-") && seen.method == Method::DELETE).count(), 2);
}

#[tokio::test]
async fn t8_a_store_that_refuses_a_second_create_is_asked_to() {
    let objects = Mutex::new(std::collections::BTreeSet::new());
    let (target, log) = store(move |request| match *request.method() {
        Method::DELETE => Some(answer(StatusCode::NO_CONTENT).body("").unwrap()),
        _ if objects.lock().insert(request.uri().path().to_owned()) => honest(request),
        _ => Some(answer(StatusCode::PRECONDITION_FAILED).body("").unwrap()),
    });
    let put = async || target.put("writers/1", Bytes::from_static(b"x").into(), Existing::Refuse).await;
    put().await.unwrap();
    assert_eq!(target.abilities().await.unwrap(), Abilities { create_only: true, checksum: true });
    let tried = log.lock().len();
    let error = put().await.unwrap_err();
    assert_eq!((error.kind, error.class), (Kind::Exists, Class::Rejected));
    assert_eq!(log.lock().len(), tried + 1, "the probe runs once");
    assert!(log.lock().last().unwrap().create_only);
}
