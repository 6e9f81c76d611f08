//! Which targets a mount has: those of the configuration, with what commands changed since. Pure.
//!
//! A command changes the running mount and is remembered in the state directory, together with what the configuration said
//! at that moment. At the next mount the newer of the two counts:
//!
//! | the configuration says for a name | what counts |
//! |---|---|
//! | what it said when the command came | the command; the difference is reported |
//! | what the command said | both agree: the command is forgotten |
//! | something else again | the configuration: somebody edited it since; the command is forgotten |
//!
//! Owns: this decision, and the words of the report.
//! Does not own: remembering (`meta::target_set`), changing a running mount (`mount::targets`).

use crate::config::{self, TargetConfig};
use crate::meta::target_set::TargetChange;

/// The targets of a mount.
#[derive(Debug, Default)]
pub struct LiveSet {
    pub targets: Vec<TargetConfig>,
    /// Names whose change the configuration has overtaken.
    pub forget: Vec<String>,
    /// Where the configuration and the live set differ: for an operator, with what to do.
    pub notes: Vec<String>,
}

/// Puts the configuration and what commands changed together.
pub fn effective(configured: &[TargetConfig], changes: &[TargetChange]) -> config::Result<LiveSet> {
    let mut set = LiveSet { targets: configured.to_vec(), ..LiveSet::default() };
    for change in changes {
        let name = &change.name;
        let says = configured.iter().find(|target| target.name == *name);
        let unchanged = says.map(|target| &target.uri) == change.configured.as_ref();
        let wanted = match &change.uri {
            Some(uri) => Some(TargetConfig::from_uri(name, uri)?),
            None => None,
        };
        let agrees = says.map(|target| &target.uri) == wanted.as_ref().map(|target| &target.uri);
        if agrees || (says.is_some() && !unchanged) {
            set.forget.push(name.clone());
            continue;
        }
        let file_says = match says {
            Some(target) => format!("the configuration says {}", target.uri),
            None => "the configuration does not name it".to_owned(),
        };
        match wanted {
            None => {
                set.targets.retain(|target| target.name != *name);
                set.notes.push(format!(
                    "target {name:?} was removed by command, {file_says}: take it out of there, or bring it back with \
                     tandemfs target add"
                ));
            }
            Some(wanted) => {
                let done = if says.is_some() { "replaced" } else { "added" };
                set.notes.push(format!(
                    "target {name:?} was {done} by command, as {}, {file_says}: write it there, too",
                    wanted.uri
                ));
                match set.targets.iter_mut().find(|target| target.name == *name) {
                    Some(target) => *target = wanted,
                    None => set.targets.push(wanted),
                }
            }
        }
    }
    config::check_places(&set.targets)?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, place: &str) -> TargetConfig {
        TargetConfig::from_uri(name, &format!("fs:///{place}")).unwrap()
    }

    fn change(name: &str, uri: Option<&str>, configured: Option<&str>) -> TargetChange {
        let full = |place: &str| format!("fs:///{place}");
        TargetChange { name: name.into(), uri: uri.map(full), configured: configured.map(full) }
    }

    /// `a=1 b=2`, the names forgotten, the number of notes.
    fn set(configured: &[(&str, &str)], changes: &[TargetChange]) -> (String, Vec<String>, usize) {
        let configured: Vec<_> = configured.iter().map(|(name, place)| target(name, place)).collect();
        let set = effective(&configured, changes).unwrap();
        let targets: Vec<_> =
            set.targets.iter().map(|t| format!("{}={}", t.name, t.uri.trim_start_matches("fs:///"))).collect();
        (targets.join(" "), set.forget, set.notes.len())
    }

    #[test]
    fn what_commands_changed_is_remembered_until_the_configuration_says_it_or_something_newer() {
        let file = [("a", "1"), ("b", "2")];
        let removed = change("b", None, Some("2"));
        let added = change("c", Some("3"), None);
        let replaced = change("b", Some("9"), Some("2"));
        let none = || Vec::<String>::new();
        let b = || vec!["b".to_owned()];
        assert_eq!(set(&file, &[]), ("a=1 b=2".into(), none(), 0));
        assert_eq!(set(&file, std::slice::from_ref(&removed)), ("a=1".into(), none(), 1));
        assert_eq!(set(&file[..1], std::slice::from_ref(&removed)), ("a=1".into(), b(), 0), "taken out of the file");
        assert_eq!(set(&[("a", "1"), ("b", "7")], &[removed]), ("a=1 b=7".into(), b(), 0), "another place since");
        assert_eq!(set(&file, std::slice::from_ref(&added)), ("a=1 b=2 c=3".into(), none(), 1));
        let with_c = [("a", "1"), ("b", "2"), ("c", "3")];
        assert_eq!(set(&with_c, std::slice::from_ref(&added)), ("a=1 b=2 c=3".into(), vec!["c".into()], 0));
        let other_c = [("a", "1"), ("b", "2"), ("c", "4")];
        assert_eq!(set(&other_c, &[added]), ("a=1 b=2 c=4".into(), vec!["c".into()], 0));
        assert_eq!(set(&file, std::slice::from_ref(&replaced)), ("a=1 b=9".into(), none(), 1));
        assert_eq!(set(&[("a", "1"), ("b", "9")], std::slice::from_ref(&replaced)), ("a=1 b=9".into(), b(), 0));
        assert_eq!(set(&[("a", "1"), ("b", "7")], std::slice::from_ref(&replaced)), ("a=1 b=7".into(), b(), 0));
        assert_eq!(set(&file[..1], &[replaced]), ("a=1 b=9".into(), none(), 1), "it stays, and is reported");
    }

    #[test]
    fn t1_a_remembered_target_is_not_put_into_the_place_of_a_configured_one() {
        let configured = [target("a", "1")];
        assert!(effective(&configured, &[change("c", Some("1/in"), None)]).is_err());
    }
}
