//! Values that must not be seen: where they come from, and how they are shown.
//!
//! Owns: `${ENV}` and `{ file = "…" }`, which option names hold secrets.
//! Does not own: what an option means (`target::service`).

use std::path::Path;

use super::{Error, Result};

/// Longest secret file: a service account's key in JSON has about 2 KiB.
const FILE_MAX: u64 = 64 << 10;

/// What stands for a secret wherever it is shown.
pub(super) const REDACTED: &str = "***";

/// True if the option of this name holds a secret. Ids and paths of keys do not.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let public = ["_id", "_file", "_path", "_md5", "_algorithm", "_endpoint"].iter().any(|end| key.ends_with(end));
    let secret = ["secret", "password", "passphrase", "token", "credential", "_key", "apikey", "signature"];
    !public && secret.iter().any(|part| key.contains(part))
}

/// Replaces each `${NAME}` by the environment's value; `$$` stands for `$`.
pub(super) fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(Error::new("`${` without `}`").hint("write ${NAME}, or $$ for a dollar sign"));
            };
            let Some(value) = variable(name) else {
                return Err(Error::new(format!("environment variable {name:?} is not set"))
                    .hint(format!("export {name}, or use {{ file = \"…\" }} to read the value from a file")));
            };
            expanded.push_str(&value);
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The environment's value, for [`expand`].
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a value from a file; one line break at the end is not part of it.
pub(super) fn read_file(file: &str, relative_to: &Path) -> Result<String> {
    let path = relative_to.join(file);
    let failed = |why: String| Error::new(format!("cannot read the value in {}: {why}", path.display()));
    let length = std::fs::metadata(&path).map_err(|error| failed(error.to_string()))?.len();
    if length > FILE_MAX {
        return Err(failed(format!("it has {length} bytes, more than {FILE_MAX}")));
    }
    // The message of a UTF-8 error does not quote the bytes.
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for secret in [
            "secret_access_key",
            "access_key_secret",
            "session_token",
            "password",
            "application_key",
            "account_key",
            "sas_token",
            "credential",
            "SECRET_KEY",
            "server_side_encryption_customer_key",
            "token",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        for public in ["access_key_id", "bucket", "root", "endpoint", "oidc_token_file", "secret_id", "username", "key"]
        {
            assert!(!is_secret(public), "{public}");
        }
    }

    #[test]
    fn variables_are_replaced() {
        let variable = |name: &str| (name == "A").then(|| "x${B}".to_owned());
        let expand = |text| expand(text, variable);
        assert_eq!(expand("1${A}2${A}").unwrap(), "1x${B}2x${B}", "a value is not expanded again");
        assert_eq!(expand("$$5 $x $").unwrap(), "$5 $x $");
        assert_eq!(expand("").unwrap(), "");
        assert!(expand("${B}").unwrap_err().message.contains("\"B\" is not set"));
        assert!(expand("${A").is_err());
    }

    #[test]
    fn a_file_gives_its_line() {
        let dir = tempfile::tempdir().unwrap();
        for (content, expected) in
            [("s\n", Some("s")), ("s", Some("s")), ("s\r\n", Some("s")), ("\n", None), ("", None)]
        {
            std::fs::write(dir.path().join("f"), content).unwrap();
            assert_eq!(read_file("f", dir.path()).ok().as_deref(), expected, "{content:?}");
        }
        assert!(read_file("none", dir.path()).unwrap_err().message.contains("none"));
    }
}
