//! What the file says about the identity provider. Not its secrets: those lie in files that it names.

use std::{collections::BTreeMap, path::PathBuf};

use openidconnect::url::{Host, Url};
use serde::Deserialize;

use crate::access::Role;

/// Where the provider sends browsers back to.
pub(crate) const CALLBACK_PATH: &str = "/login/oidc/callback";

/// How people sign in through a provider.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Its issuer, for example `https://login.example.org/realms/factory`.
    pub issuer: String,
    /// What it knows this control plane as.
    pub client_id: String,
    /// The file with the secret that it gave for that; without one only PKCE protects the code.
    pub client_secret_file: Option<PathBuf>,
    /// This control plane's address as browsers have it, with the path `/login/oidc/callback`.
    pub redirect_url: String,
    /// The claim of the ID token with the groups.
    #[serde(default = "groups")]
    pub groups_claim: String,
    /// The role of each group; who is in several gets the largest, who is in none is refused.
    pub roles: BTreeMap<String, Role>,
    /// The certificates (PEM) that the provider's is checked against.
    #[serde(default = "system_certificates")]
    pub ca_file: PathBuf,
}

fn groups() -> String {
    "groups".to_owned()
}

/// Where Debian, Alpine and their kin keep what the system trusts.
fn system_certificates() -> PathBuf {
    PathBuf::from("/etc/ssl/certs/ca-certificates.crt")
}

impl OidcConfig {
    /// Names every mistake that can be seen without asking the provider.
    pub(crate) fn check(&self, mistakes: &mut Vec<String>) {
        for (name, text) in [("issuer", &self.issuer), ("redirect_url", &self.redirect_url)] {
            if !Url::parse(text).is_ok_and(|url| is_secure(&url)) {
                mistakes.push(format!(
                    "oidc.{name}: `{text}` is no https:// address (http:// is for this machine only)"
                ));
            }
        }
        if Url::parse(&self.redirect_url).is_ok_and(|url| url.path() != CALLBACK_PATH) {
            mistakes.push(format!("oidc.redirect_url must end with the path {CALLBACK_PATH}"));
        }
        if self.roles.is_empty() {
            mistakes.push("oidc.roles without a group lets nobody in".to_owned());
        }
    }
}

/// Plain HTTP does not leave this machine.
fn is_secure(url: &Url) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && here)
}
