//! The kinds of stores that can be configured, and their options.
//!
//! Owns: which schemes exist and are compiled in, the check of options against the service's own configuration (OpenDAL
//! ignores unknown ones silently), our defaults.
//! Does not own: where options come from and which values are secret (`config`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use opendal::raw::ConfigDeserializer;
use opendal::{Configurator, Operator, services};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::operator::OperatorTarget;
use super::pace::Pacer;
use super::{Class, DynTarget, Error, Kind, Result, transport};

/// Options of a service as text, as OpenDAL takes them.
pub type Options = BTreeMap<String, String>;

/// A kind of store that is compiled in.
pub struct Service {
    /// The scheme of its URIs.
    pub scheme: &'static str,
    /// The option that the host of a URI names: a bucket, a container, an endpoint.
    pub host: &'static str,
    keys: fn() -> Vec<String>,
    check: fn(HashMap<String, String>) -> Check,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

struct Check {
    unknown: Vec<String>,
    invalid: Option<String>,
}

/// Why options cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// The service has no option of this name.
    Unknown { key: String },
    /// A value has the wrong form; the message names the option.
    Invalid { message: String },
}

/// The answer to "what is this scheme?".
#[derive(Debug)]
pub enum Scheme {
    /// Compiled in.
    Known(Service),
    /// Known, but this build lacks the feature of this name.
    NeedsFeature(&'static str),
    /// Nothing that we know.
    Unknown,
}

/// Schemes of stores reached through OpenDAL, compiled in or not.
pub const SCHEMES: [&str; 9] = ["azblob", "b2", "cos", "gcs", "obs", "oss", "s3", "sftp", "webdav"];

/// Finds the kind of store that a scheme names.
pub fn find(scheme: &str) -> Scheme {
    let known = match scheme {
        "s3" => service::<services::S3Config>("s3", "bucket"),
        "oss" => service::<services::OssConfig>("oss", "bucket"),
        "cos" => service::<services::CosConfig>("cos", "bucket"),
        "obs" => service::<services::ObsConfig>("obs", "bucket"),
        "b2" => service::<services::B2Config>("b2", "bucket"),
        "webdav" => service::<services::WebdavConfig>("webdav", "endpoint"),
        #[cfg(feature = "azblob")]
        "azblob" => service::<services::AzblobConfig>("azblob", "container"),
        #[cfg(feature = "gcs")]
        "gcs" => service::<services::GcsConfig>("gcs", "bucket"),
        #[cfg(feature = "sftp")]
        "sftp" => service::<services::SftpConfig>("sftp", "endpoint"),
        #[cfg(not(feature = "azblob"))]
        "azblob" => return Scheme::NeedsFeature("azblob"),
        #[cfg(not(feature = "gcs"))]
        "gcs" => return Scheme::NeedsFeature("gcs"),
        #[cfg(not(feature = "sftp"))]
        "sftp" => return Scheme::NeedsFeature("sftp"),
        _ => return Scheme::Unknown,
    };
    Scheme::Known(known)
}

fn service<C: Configurator + Serialize + DeserializeOwned + Default>(
    scheme: &'static str,
    host: &'static str,
) -> Service {
    Service { scheme, host, keys: keys::<C>, check: check::<C> }
}

fn keys<C: Serialize + Default>() -> Vec<String> {
    match serde_json::to_value(C::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

fn check<C: DeserializeOwned>(options: HashMap<String, String>) -> Check {
    let mut unknown = Vec::new();
    let parsed: std::result::Result<C, _> =
        serde_ignored::deserialize(ConfigDeserializer::new(options), |path| unknown.push(path.to_string()));
    Check { unknown, invalid: parsed.err().map(|error| error.to_string()) }
}

impl Service {
    /// The names of all options, for suggestions.
    pub fn keys(&self) -> Vec<String> {
        (self.keys)()
    }

    /// Refuses options that the service does not know or cannot read.
    pub fn check(&self, options: &Options) -> std::result::Result<(), OptionError> {
        let checked = (self.check)(self.with_defaults(options));
        if let Some(key) = checked.unknown.into_iter().next() {
            return Err(OptionError::Unknown { key });
        }
        checked.invalid.map_or(Ok(()), |message| Err(OptionError::Invalid { message }))
    }

    /// Builds the target. Nothing is contacted yet.
    pub fn build(&self, options: &Options, pacer: Pacer) -> Result<DynTarget> {
        let wrong = |message: String| Error {
            kind: Kind::Config,
            class: Class::Rejected,
            operation: "configure",
            key: self.scheme.to_owned(),
            message,
            retry_after: None,
        };
        opendal::init_default_registry();
        let context = transport::context(pacer.clone()).map_err(|error| wrong(format!("no HTTP client: {error}")))?;
        // The message only: contexts name options with their values.
        let operator = Operator::via_iter(self.scheme, self.with_defaults(options))
            .map_err(|error| wrong(error.message().to_owned()))?
            .with_context(context);
        Ok(Arc::new(OperatorTarget::new(operator).paced(pacer)))
    }

    fn with_defaults(&self, options: &Options) -> HashMap<String, String> {
        let mut options: HashMap<_, _> = options.clone().into_iter().collect();
        if self.scheme == "s3" {
            // Computed at 26 GB/s and verified by the store: the cheapest proof that it has what we sent.
            let checksum = options.entry("checksum_algorithm".to_owned()).or_insert_with(|| "crc32c".to_owned());
            if checksum == "none" {
                options.remove("checksum_algorithm");
            }
            // Servers with an endpoint of their own mostly do not care, but a region must be signed.
            let named = options.contains_key("region") || options.contains_key("aws_region");
            if !named && options.contains_key("endpoint") && std::env::var_os("AWS_REGION").is_none() {
                options.insert("region".to_owned(), "us-east-1".to_owned());
            }
        }
        options
    }
}

/// The store that OpenDAL keeps in memory, for tests: the same code as for a cloud, without a network.
pub fn opendal_memory() -> DynTarget {
    opendal::init_default_registry();
    let operator = Operator::via_iter("memory", []).expect("the memory service needs no options");
    Arc::new(OperatorTarget::new(operator))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> Service {
        match find("s3") {
            Scheme::Known(service) => service,
            other => panic!("{other:?}"),
        }
    }

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn unknown_options_are_errors_and_aliases_are_not() {
        assert_eq!(s3().check(&options(&[("bucket", "b"), ("aws_region", "r")])), Ok(()));
        let unknown = s3().check(&options(&[("bucket", "b"), ("regoin", "r")]));
        assert_eq!(unknown, Err(OptionError::Unknown { key: "regoin".to_owned() }));
        let invalid = s3().check(&options(&[("bucket", "b"), ("disable_config_load", "maybe")])).unwrap_err();
        assert!(matches!(&invalid, OptionError::Invalid { message } if message.contains("disable_config_load")));
        assert!(s3().keys().contains(&"secret_access_key".to_owned()));
    }

    #[test]
    fn every_scheme_is_known_or_names_its_feature() {
        for scheme in SCHEMES {
            assert!(!matches!(find(scheme), Scheme::Unknown), "{scheme}");
        }
        assert!(matches!(find("ftp"), Scheme::Unknown));
    }

    #[test]
    fn the_checksum_is_the_default_and_can_be_left_out() {
        assert_eq!(s3().with_defaults(&options(&[]))["checksum_algorithm"], "crc32c");
        assert_eq!(s3().with_defaults(&options(&[("checksum_algorithm", "md5")]))["checksum_algorithm"], "md5");
        assert!(!s3().with_defaults(&options(&[("checksum_algorithm", "none")])).contains_key("checksum_algorithm"));
    }
}
