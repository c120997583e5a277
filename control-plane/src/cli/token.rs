//! `skerry token`: API tokens of people and programs.

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Done, Global, Output,
    client::list,
    output::{self, ago, text},
    parse::duration,
};
use crate::access::{Role, TokenId, UserName};

/// Commands about API tokens.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Makes an API token; it is shown once.
    #[command(after_help = "Examples:\n  \
        skerry token create laptop                        # acts as whoever makes it\n  \
        skerry token create ci --alone --role publisher   # for a program; admins only\n  \
        export SKERRY_TOKEN=skp_…                         # or put it into ~/.config/skerry/token")]
    Create {
        /// What it is for.
        name: String,
        /// What it may do: viewer, operator, publisher or admin; without it as much as whoever it acts for.
        #[arg(long)]
        role: Option<Role>,
        /// The user that it acts for; admins only.
        #[arg(long, conflicts_with = "alone")]
        user: Option<UserName>,
        /// It acts for no user: for a program. Admins only.
        #[arg(long)]
        alone: bool,
        /// How long it can be used.
        #[arg(long, default_value = "90d", value_parser = duration, conflicts_with = "no_expiry")]
        ttl: Duration,
        /// It can be used until it is revoked.
        #[arg(long)]
        no_expiry: bool,
    },
    /// Lists API tokens: your own, or all for an admin.
    List,
    /// Ends an API token, and what it has opened.
    Revoke {
        /// The token's id, the part after `skp_`.
        id: TokenId,
    },
    /// Says who you are to the control plane.
    Whoami,
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    match command {
        Command::Create {
            name,
            role,
            user,
            alone,
            ttl,
            no_expiry,
        } => {
            let mut body = json!({"name": name, "role": role, "user": user, "alone": alone});
            if !no_expiry {
                body["ttl_seconds"] = json!(ttl.as_secs());
            }
            let token = client.post("/api/v1/tokens", &body)?;
            match global.output {
                Output::Json => output::json(&token),
                Output::Table => {
                    output::line(&text(&token, "secret"));
                    output::note(&format!(
                        "token {} of role {}; it is not shown again",
                        text(&token, "id"),
                        text(&token, "role")
                    ));
                }
            }
        }
        Command::List => {
            let answer = client.get("/api/v1/tokens")?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::table(
                    ["token", "name", "acts for", "role", "made by", "last used", "expires"],
                    list(answer, "tokens").iter().map(row),
                ),
            }
        }
        Command::Revoke { id } => {
            client.delete(&format!("/api/v1/tokens/{id}"))?;
            output::note(&format!("token {id} is revoked"));
        }
        Command::Whoami => {
            let who = client.get("/api/v1/whoami")?;
            match global.output {
                Output::Json => output::json(&who),
                Output::Table => output::line(&format!("{}: {}", text(&who, "name"), text(&who, "role"))),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(token: &Value) -> [String; 7] {
    let expires = token["expires_at_ms"].as_u64().map_or_else(
        || "never".to_owned(),
        |at| skerry_tuf::UnixTime::from_millis(i64::try_from(at).unwrap_or(i64::MAX)).to_string(),
    );
    let owner = text(token, "owner");
    [
        text(token, "id"),
        text(token, "name"),
        if owner.is_empty() { "itself".to_owned() } else { owner },
        text(token, "role"),
        text(token, "person"),
        ago(token["last_used_at_ms"].as_u64()),
        expires,
    ]
}
