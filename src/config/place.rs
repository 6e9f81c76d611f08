//! Two targets must not be one place, nor one inside the other (T1).
//!
//! Owns: what the URIs alone can tell. Two URIs that lead to one place unseen (an alias of a host, a bind mount) are found
//! at contact, by the id in `tandemfs.json`.

use std::path::{Path, PathBuf};

use super::{Error, Location, Result, TargetConfig};
use crate::id::TargetBit;

/// Refuses target lists that cannot be meant.
pub(super) fn check(targets: &[TargetConfig]) -> Result<()> {
    if targets.len() > usize::from(TargetBit::COUNT) {
        let message = format!("{} targets are configured, at most {} are possible", targets.len(), TargetBit::COUNT);
        return Err(Error::new(message));
    }
    let places: Vec<Place> = targets.iter().map(Place::of).collect();
    for (index, target) in targets.iter().enumerate() {
        for (earlier, place) in targets[..index].iter().zip(&places) {
            let (earlier_name, name) = (&earlier.name, &target.name);
            if earlier_name == name {
                return Err(Error::new(format!("two targets are named {name:?}")).hint("give each its own name"));
            }
            let relation = match place.relation(&places[index]) {
                Relation::Apart => continue,
                Relation::Same => "are the same place",
                Relation::Nested => "lie inside one another",
            };
            let message =
                format!("targets {earlier_name:?} and {name:?} {relation}: {} and {}", earlier.uri, target.uri);
            return Err(Error::new(message).hint("give each target a bucket, directory or prefix of its own"));
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// What must be equal for two places to have anything to do with each other.
    store: Vec<String>,
    /// Below it.
    path: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Relation {
    Apart,
    Same,
    Nested,
}

impl Place {
    fn of(target: &TargetConfig) -> Place {
        match &target.location {
            Location::Directory(path) => {
                // Bytes that are no UTF-8 may make two places look alike, never one place look like two.
                let path = canonical(path).to_string_lossy().into_owned();
                Place { store: vec!["fs".to_owned()], path: components(&path) }
            }
            Location::Memory(name) => Place { store: vec!["memory".to_owned(), name.clone()], path: Vec::new() },
            Location::Service { scheme, options } => {
                let option = |keys: &[&str]| keys.iter().find_map(|key| options.get(*key)).cloned().unwrap_or_default();
                let endpoint = option(&["endpoint", "aws_endpoint", "aws_endpoint_url", "endpoint_url"]);
                let bucket =
                    option(&["bucket", "aws_bucket", "aws_bucket_name", "bucket_name", "container", "filesystem"]);
                let endpoint = endpoint.trim_end_matches('/').to_ascii_lowercase();
                Place { store: vec![scheme.clone(), endpoint, bucket], path: components(&option(&["root"])) }
            }
        }
    }

    fn relation(&self, other: &Place) -> Relation {
        if self.store != other.store {
            return Relation::Apart;
        }
        let common = self.path.len().min(other.path.len());
        match self.path[..common] == other.path[..common] {
            true if self.path.len() == other.path.len() => Relation::Same,
            true => Relation::Nested,
            false => Relation::Apart,
        }
    }
}

fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

/// The path with symlinks resolved as far as it exists.
fn canonical(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(mut resolved) = std::fs::canonicalize(existing) {
            resolved.extend(missing.iter().rev());
            return resolved;
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            _ => return path.to_owned(),
        }
    }
}
