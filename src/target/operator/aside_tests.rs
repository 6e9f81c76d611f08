//! Bodies that break off, over a WebDAV server that keeps what it got of them, as some do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Request, Response, StatusCode};
use opendal::{Buffer, HttpBody, HttpTransport, Operator};
use parking_lot::Mutex;

use super::OperatorTarget;
use crate::target::{Class, Existing, Kind, Target, transport};

/// The server: lengths of its files by their paths.
#[derive(Clone, Default)]
struct Server {
    files: Arc<Mutex<BTreeMap<String, usize>>>,
    breaks: Arc<AtomicBool>,
}

impl Server {
    fn answer(&self, request: &Request<Buffer>) -> (StatusCode, String) {
        let path = request.uri().path().to_owned();
        let mut files = self.files.lock();
        match request.method().as_str() {
            "PROPFIND" if path.ends_with('/') => (StatusCode::MULTI_STATUS, properties(&path, None)),
            "PROPFIND" => match files.get(&path) {
                Some(length) => (StatusCode::MULTI_STATUS, properties(&path, Some(*length))),
                None => (StatusCode::NOT_FOUND, String::new()),
            },
            "PUT" if self.breaks.load(Ordering::Relaxed) => {
                files.insert(path, request.body().len() / 2);
                (StatusCode::INTERNAL_SERVER_ERROR, String::new())
            }
            "PUT" => {
                files.insert(path, request.body().len());
                (StatusCode::CREATED, String::new())
            }
            "MOVE" => {
                let to =
                    request.headers()["destination"].to_str().unwrap().strip_prefix("http://store").unwrap().to_owned();
                let Some(length) = files.remove(&path) else { return (StatusCode::NOT_FOUND, String::new()) };
                files.insert(to, length);
                (StatusCode::CREATED, String::new())
            }
            "DELETE" => {
                files.remove(&path);
                (StatusCode::NO_CONTENT, String::new())
            }
            _ => (StatusCode::CREATED, String::new()),
        }
    }

    fn target(&self) -> OperatorTarget {
        opendal::init_default_registry();
        let options = [("endpoint".to_owned(), "http://store".to_owned()), ("root".to_owned(), "/p".to_owned())];
        let operator = Operator::via_iter("webdav", options).unwrap();
        OperatorTarget::new(operator.with_context(transport::over(self.clone())))
    }

    fn names(&self) -> Vec<String> {
        self.files.lock().keys().cloned().collect()
    }
}

fn properties(path: &str, length: Option<usize>) -> String {
    let kind = match length {
        Some(length) => format!("<D:getcontentlength>{length}</D:getcontentlength><D:resourcetype/>"),
        None => "<D:resourcetype><D:collection/></D:resourcetype>".to_owned(),
    };
    format!(
        "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>{path}</D:href><D:propstat><D:prop>\
         <D:getlastmodified>Sun, 06 Nov 1994 08:49:37 GMT</D:getlastmodified>{kind}</D:prop>\
         <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>"
    )
}

impl HttpTransport for Server {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (status, text) = self.answer(&request);
        let body = futures::stream::iter([Ok(Buffer::from(text))]);
        Ok(Response::builder().status(status).body(HttpBody::new(body, None)).unwrap())
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_has_no_name_and_the_next_try_has() {
    let server = Server::default();
    let target = server.target();
    server.breaks.store(true, Ordering::Relaxed);
    let error = target.put("writers/1", vec![1; 1000].into(), Existing::Refuse).await.unwrap_err();
    assert_eq!((error.class, error.key.as_str()), (Class::Temporary, "writers/1"), "nothing was applied: {error}");
    assert_eq!(server.names(), Vec::<String>::new(), "what was written aside is removed, too");
    server.breaks.store(false, Ordering::Relaxed);
    target.put("writers/1", vec![1; 1000].into(), Existing::Refuse).await.unwrap();
    assert_eq!(server.names(), ["/p/writers/1"]);
    let error = target.put("writers/1", vec![2; 9].into(), Existing::Refuse).await.unwrap_err();
    assert_eq!(error.kind, Kind::Exists);
    target.put("writers/1", vec![2; 9].into(), Existing::Replace).await.unwrap();
    assert_eq!(target.stat("writers/1").await.unwrap(), Some(9));
    assert!(!target.abilities().await.unwrap().create_only, "a move replaces: fencing is weak, and said to be");
}
