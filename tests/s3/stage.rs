//! A place with an S3 server, and configuration files whose targets lie on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::mounted::Place;
use crate::support::s3::S3Server;

/// A place and its server; secrets are in the environment of the place, as `S3_ID` and `S3_SECRET`.
pub struct Stage {
    pub place: Place,
    pub server: S3Server,
}

impl Stage {
    /// A server with empty buckets of these names.
    pub fn new(buckets: &[&str]) -> Stage {
        let mut place = Place::new(&[]);
        let server = S3Server::start(&place.path("server"));
        for bucket in buckets {
            server.create_bucket(bucket);
        }
        place.set_env("S3_ID", &server.access_key);
        place.set_env("S3_SECRET", &server.secret_key);
        Stage { place, server }
    }

    /// The table of a target in a bucket, with the secrets left to the environment.
    pub fn bucket(&self, name: &str, uri: &str) -> String {
        format!(
            "[target.{name}]\nuri = \"{uri}\"\nendpoint = \"{}\"\naccess_key_id = \"${{S3_ID}}\"\n\
             secret_access_key = \"${{S3_SECRET}}\"\n\n",
            self.server.endpoint
        )
    }

    /// The table of a directory target.
    pub fn directory(&self, name: &str) -> String {
        format!("[target.{name}]\nuri = \"fs://{}\"\n\n", self.place.path(name).display())
    }

    /// Writes a configuration file and makes it that of the place.
    pub fn configure(&mut self, name: &str, tables: &[String]) -> PathBuf {
        let path = self.place.path(name);
        std::fs::write(&path, tables.concat()).unwrap();
        self.place.use_config(&path);
        path
    }

    /// The files of a bucket.
    pub fn bucket_path(&self, bucket: &str) -> PathBuf {
        self.place.path("server").join(bucket)
    }
}

/// Every file below a directory with its bytes, every directory with none.
pub fn contents(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                found.insert(entry.path(), None);
                pending.push(entry.path());
            } else {
                found.insert(entry.path(), Some(std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    found
}
