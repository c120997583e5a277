//! `skerry user`: who may do what.

use std::{io::Read, process::ExitCode};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Done, Global, Output,
    client::list,
    output::{self, ago, text},
    terminal::Terminal,
};
use crate::access::{Role, UserName};

/// Longer than any password that the control plane takes.
const PASSWORD_BYTES_MAX: u64 = 1024;

/// Commands about users.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Makes a user.
    #[command(after_help = ROLES)]
    Add {
        /// The name: 1 to 64 of a-z, 0-9, `-`, `_`, `.`, `@` and `+`.
        name: UserName,
        /// What it may do: viewer, operator, publisher or admin.
        #[arg(long)]
        role: Role,
        /// Reads the password from stdin; without it the terminal is asked.
        #[arg(long, conflicts_with = "no_password")]
        password_stdin: bool,
        /// Makes a user that has API tokens only.
        #[arg(long)]
        no_password: bool,
    },
    /// Lists users.
    List,
    /// Gives a user another role. It counts at once, for sessions and tokens too.
    #[command(after_help = ROLES)]
    SetRole {
        /// The user.
        name: UserName,
        /// viewer, operator, publisher or admin.
        role: Role,
    },
    /// Shuts a user out: its sessions, tokens and streams end at once.
    Disable {
        /// The user.
        name: UserName,
    },
    /// Lets a user in again. Its tokens count again, its sessions do not.
    Enable {
        /// The user.
        name: UserName,
    },
    /// Sets a user's password and ends its sessions.
    Password {
        /// The user.
        name: UserName,
        /// Reads the password from stdin; without it the terminal is asked.
        #[arg(long)]
        password_stdin: bool,
    },
}

pub(super) const ROLES: &str = "Roles, each with all that the ones before it may do:\n  \
    viewer     looks at everything but users\n  \
    operator   devices and rollouts: enrolment tokens, labels, create, approve, pause, abort\n  \
    publisher  models, runs, bundles\n  \
    admin      users and tokens";

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let user = match command {
        Command::Add {
            name,
            role,
            password_stdin,
            no_password,
        } => {
            let mut body = json!({"name": name, "role": role});
            if !no_password {
                body["password"] = json!(*password(password_stdin)?);
            }
            client.post("/api/v1/users", &body)?
        }
        Command::List => {
            let answer = client.get("/api/v1/users")?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::table(HEADER, list(answer, "users").iter().map(row)),
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::SetRole { name, role } => client.patch(&format!("/api/v1/users/{name}"), &json!({"role": role}))?,
        Command::Disable { name } => client.patch(&format!("/api/v1/users/{name}"), &json!({"disabled": true}))?,
        Command::Enable { name } => client.patch(&format!("/api/v1/users/{name}"), &json!({"disabled": false}))?,
        Command::Password { name, password_stdin } => {
            let body = json!({"password": *password(password_stdin)?});
            client.put(&format!("/api/v1/users/{name}/password"), &body)?
        }
    };
    match global.output {
        Output::Json => output::json(&user),
        Output::Table => output::table(HEADER, [row(&user)]),
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 5] = ["user", "role", "password", "state", "made"];

fn row(user: &Value) -> [String; 5] {
    let choose = |key: &str, yes: &str, no: &str| if user[key] == json!(true) { yes } else { no }.to_owned();
    [
        text(user, "name"),
        text(user, "role"),
        choose("has_password", "yes", "none"),
        choose("disabled", "disabled", "enabled"),
        ago(user["created_at_ms"].as_u64()),
    ]
}

fn password(from_stdin: bool) -> anyhow::Result<Zeroizing<String>> {
    if from_stdin {
        return read_password(std::io::stdin().lock());
    }
    let mut terminal = Terminal::open().context("give the password on stdin: --password-stdin")?;
    let first = terminal.ask("password, at least 12 characters: ")?;
    let second = terminal.ask("the same again: ")?;
    if *first != *second {
        bail!("the two passwords differ; nothing was changed");
    }
    Ok(first)
}

/// Reads a password to its end; the line end of `echo` is none of it.
fn read_password(from: impl Read) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD_BYTES_MAX as usize + 1));
    from.take(PASSWORD_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .context("cannot read the password from stdin")?;
    if text.len() as u64 > PASSWORD_BYTES_MAX {
        bail!("the password on stdin is longer than {PASSWORD_BYTES_MAX} bytes");
    }
    Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_on_stdin_is_taken_without_its_line_end() {
        assert_eq!(*read_password(&b"correct horse \n"[..]).unwrap(), "correct horse ");
        assert!(read_password(&[b'x'; 2000][..]).is_err());
        assert!(read_password(&[0xff][..]).is_err());
    }
}
