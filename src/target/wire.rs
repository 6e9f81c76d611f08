//! HTTP requests over `reqwest`, their bodies paced.
//!
//! Owns: the connection's timeouts, cutting bodies into frames that go when their turn has come, counting them.
//! Does not own: turns (`pace`), notes about answers (`transport`), what an answer means (OpenDAL, `classify`).

use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll, ready as poll_ready};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, header};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport};
use parking_lot::Mutex;

use super::pace::{FRAME, Held, Pacer};

/// Connecting takes one round trip or two; a store that needs longer is as good as down.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes that were sent and stay unacknowledged this long mean that the path is dead, however slow the link is.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Idle connections kept per store.
const IDLE: usize = 16;

/// The connections to one store: targets share none, so that none waits for another's.
pub(super) struct Wire {
    client: reqwest::Client,
    pacer: Pacer,
}

impl Wire {
    pub(super) fn new(pacer: Pacer) -> Result<Wire, reqwest::Error> {
        // The first one wins; that another was installed before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .tcp_keepalive(UNACKNOWLEDGED)
            .pool_max_idle_per_host(IDLE)
            .referer(false)
            // No `read_timeout`: it would also end an upload that merely takes longer.
            .build()?;
        Ok(Wire { client, pacer })
    }
}

impl HttpTransport for Wire {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let uri = request.uri().clone();
        let bodyless = request.method() == Method::HEAD;
        let (parts, body) = request.into_parts();
        let url = uri.to_string();
        let mut sending = self.client.request(parts.method, url.as_str()).headers(parts.headers).version(parts.version);
        if !body.is_empty() {
            sending = sending.body(reqwest::Body::wrap(Paced::new(body, self.pacer.clone())));
        }
        let answer = sending.send().await.map_err(|error| failed("send http request", &url, error))?;
        let encoded = answer.headers().contains_key(header::CONTENT_ENCODING);
        let length = match answer.headers().get(header::CONTENT_LENGTH) {
            // Of a HEAD it is the object's; of an encoded body it is not what will be read.
            Some(_) if bodyless || encoded => None,
            Some(value) => Some(value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
                Error::new(ErrorKind::Unexpected, "the content length of an answer is no number")
                    .with_context("url", &url)
            })?),
            None => None,
        };
        let mut response = Response::builder().status(answer.status()).version(answer.version()).extension(uri);
        if let Some(headers) = response.headers_mut() {
            headers.clone_from(answer.headers());
        }
        let stream = answer
            .bytes_stream()
            .try_filter(|bytes| ready(!bytes.is_empty()))
            .map_ok(Buffer::from)
            .map_err(move |error| failed("read data from http response", &url, error));
        response.body(HttpBody::new(stream, length)).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "the head of an answer cannot be used").set_source(error)
        })
    }
}

fn failed(message: &str, url: &str, error: reqwest::Error) -> Error {
    let temporary = error.is_request() || error.is_body() || error.is_decode();
    Error::new(ErrorKind::Unexpected, message)
        .with_context("url", url)
        .with_temporary(temporary)
        // Its own copy of the URL has the query, where some stores want a signature.
        .set_source(error.without_url())
}

/// A body that goes in frames.
struct Paced {
    /// What is being cut, then the parts after it. Nothing is copied.
    part: Bytes,
    parts: Buffer,
    pacer: Pacer,
    held: Held,
    /// The turn of the next frame. Never locked: the mutex makes it `Sync`, as the client wants its bodies.
    turn: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Paced {
    fn new(body: Buffer, pacer: Pacer) -> Paced {
        // Here and not when it is polled: that is done by the connection's task.
        Paced { part: Bytes::new(), parts: body, pacer, held: Held::of_this_call(), turn: Mutex::new(None) }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        while this.part.is_empty() {
            match this.parts.next() {
                Some(part) => this.part = part,
                None => return Poll::Ready(None),
            }
        }
        let bytes = this.part.len().min(FRAME);
        let turn = this.turn.get_mut().get_or_insert_with(|| {
            let (pacer, held) = (this.pacer.clone(), this.held.clone());
            Box::pin(async move { pacer.turn(bytes, &held).await })
        });
        poll_ready!(turn.as_mut().poll(context));
        *this.turn.get_mut() = None;
        Poll::Ready(Some(Ok(http_body::Frame::data(this.part.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.part.is_empty() && self.parts.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact((self.part.len() + self.parts.len()) as u64)
    }
}
