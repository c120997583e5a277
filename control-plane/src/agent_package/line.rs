//! The one line that somebody pastes into the shell of a new device.
//!
//! Invariant: the token is sent to nobody but a server whose certificate is by the digest in the line. The first file comes from
//! anybody, so its digest is that of the whole file: nothing can stand in it beside the certificate.

use skerry_shared::digest::Digest;

use super::script::{ScriptError, plain};

/// The line. `server` is where the device finds this control plane; `anchor` is the PEM file that [`ANCHOR_PATH`] gives out.
///
/// # Errors
/// [`ScriptError`] when a value could be more than a word of the line.
pub fn install_line(server: &str, token: &str, anchor: &str) -> Result<String, ScriptError> {
    let server = plain("address", server, b".:/[]-_")?;
    let token = plain("token", token, b"._-")?;
    let digest = Digest::of(anchor.as_bytes()).to_hex();
    Ok(format!(
        "c=$(mktemp) && curl -fsSk '{server}{ANCHOR_PATH}' -o \"$c\" && echo \"{digest}  $c\" | sha256sum -c - && \
         curl -fsS --cacert \"$c\" '{server}/install.sh?token={token}' | sudo sh"
    ))
}

/// Where the certificate is by which a device knows the control plane.
pub const ANCHOR_PATH: &str = "/install.pem";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_line_compares_the_whole_file_before_it_sends_the_token() {
        let line = install_line("https://192.0.2.1:8080", "skt_a.b.c", "PEM\n").unwrap();
        let compare = line.find(&format!(
            "echo \"{}  $c\" | sha256sum -c",
            Digest::of(b"PEM\n").to_hex()
        ));
        assert!(compare.unwrap() < line.find("skt_a.b.c").unwrap(), "{line}");
        // Whoever answers before that is not believed; whoever answers after it is checked.
        assert_eq!(line.matches("curl -fsSk ").count(), 1, "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn an_address_that_is_more_than_one_is_refused() {
        for server in ["https://a'b", "https://a b", "https://a\nb", "https://$(reboot)"] {
            assert!(install_line(server, "skt_a", "PEM").is_err(), "{server}");
        }
    }
}
