//! The script that installs the agent: a fixed text (`install.sh`) below a few variables.
//!
//! Invariant: what comes from a request or a database is in the script only as a value in single quotes that cannot end them.

use super::AgentPackage;

const TEXT: &str = include_str!("install.sh");

/// What one script is made for.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// Where the device finds this control plane, for example `https://192.0.2.1:8443`.
    pub server: &'a str,
    /// The one-time enrolment token.
    pub token: &'a str,
    /// The certificate (PEM) by which the script knows the control plane; it trusts no other.
    pub anchor: &'a str,
}

/// Why no script can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// Something in it could end the quotes.
    #[error("the {0} has characters that do not belong there")]
    Characters(&'static str),
}

/// Longer than any token and any address.
const VALUE_BYTES_MAX: usize = 512;

/// The script.
///
/// # Errors
/// [`ScriptError`] when a value is not what it should be.
pub fn script(values: &Values<'_>, packages: &[AgentPackage]) -> Result<String, ScriptError> {
    let server = plain("address", values.server, b".:/[]-_")?;
    let token = plain("token", values.token, b"._-")?;
    // Base64 and the two marker lines.
    let pem = |c: u8| c.is_ascii_alphanumeric() || b"+/=- \r\n".contains(&c);
    if !values.anchor.bytes().all(pem) {
        return Err(ScriptError::Characters("certificate"));
    }
    let anchor = values.anchor.trim();
    let mut rows = Vec::with_capacity(packages.len());
    for package in packages {
        let file = plain("package name", &package.file, b"._-+~")?;
        let (architecture, format) = (&package.architecture, &package.format);
        let (size, digest) = (package.size_bytes, package.digest.to_hex());
        rows.push(format!("{architecture} {format} {file} {size} {digest}"));
    }
    let text = format!(
        "SERVER='{server}'\nTOKEN='{token}'\nANCHOR='{anchor}'\nPACKAGES='{}'\n",
        rows.join("\n")
    );
    let (head, tail) = TEXT
        .split_once("#VALUES#\n")
        .expect("the text has a place for the values");
    Ok(format!("{head}{text}{tail}"))
}

pub(super) fn plain<'a>(what: &'static str, value: &'a str, more: &[u8]) -> Result<&'a str, ScriptError> {
    let fits = !value.is_empty() && value.len() <= VALUE_BYTES_MAX;
    if fits && value.bytes().all(|c| c.is_ascii_alphanumeric() || more.contains(&c)) {
        Ok(value)
    } else {
        Err(ScriptError::Characters(what))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_shared::digest::Digest;

    use super::*;

    fn package(file: &str) -> AgentPackage {
        AgentPackage {
            file: file.to_owned(),
            version: "0.1.0".to_owned(),
            architecture: "arm64".to_owned(),
            format: "deb".to_owned(),
            digest: Digest::of(b"a"),
            size_bytes: 7,
            published_at_ms: 1,
        }
    }

    fn values() -> Values<'static> {
        Values {
            server: "https://192.0.2.1:8443",
            token: "skt_ab.cd",
            anchor: "-----BEGIN CERTIFICATE-----\nAb+/=\n-----END CERTIFICATE-----\n",
        }
    }

    #[test]
    fn the_values_are_in_the_script_once() {
        let text = script(&values(), &[package("skerry-agent_0.1.0_arm64.deb")]).unwrap();
        let row = format!(
            "PACKAGES='arm64 deb skerry-agent_0.1.0_arm64.deb 7 {}'\n",
            Digest::of(b"a").to_hex()
        );
        for value in ["SERVER='https://192.0.2.1:8443'\n", "TOKEN='skt_ab.cd'\n", &row] {
            assert_eq!(text.matches(value).count(), 1, "{value}");
        }
        assert!(text.starts_with("#!/bin/sh\n") && !text.contains("#VALUES#"));
        // A script that broke off in the middle of its download does nothing.
        assert_eq!(text.trim_end().lines().last(), Some("main \"$@\""));
    }

    #[test]
    fn nothing_from_outside_ends_the_quotes() {
        for bad in [
            "",
            "a'b",
            "a\nb",
            "a b",
            "$(reboot)",
            "a;b",
            &"a".repeat(VALUE_BYTES_MAX + 1),
        ] {
            let token = Values { token: bad, ..values() };
            assert_eq!(script(&token, &[]), Err(ScriptError::Characters("token")), "{bad}");
            let server = Values {
                server: bad,
                ..values()
            };
            assert_eq!(script(&server, &[]), Err(ScriptError::Characters("address")), "{bad}");
            assert!(script(&values(), &[package(bad)]).is_err(), "{bad}");
        }
        let anchor = Values {
            anchor: "-----BEGIN'; reboot; '",
            ..values()
        };
        assert!(script(&anchor, &[]).is_err());
    }
}
