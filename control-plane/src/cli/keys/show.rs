//! What a root says: roles, thresholds, keys, and which of them are here.

use std::process::ExitCode;

use serde_json::{Value, json};
use skerry_tuf::KeyId;

use super::{
    super::{Done, Output, output},
    KeysFolder,
};
use crate::signing::role::{KeyRole, name_of};

pub(super) fn run(folder: &KeysFolder, print: Output) -> Done {
    let root = folder.root()?;
    let held = folder.held()?;
    let draft = folder.draft(&folder.root_draft_path())?.is_some();
    if print == Output::Json {
        let role = |role: KeyRole| role_as_json(role, &root, &held);
        output::json(&json!({
            "version": root.version,
            "expires": root.expires.to_string(),
            "draft": draft,
            "roles": KeyRole::ALL.into_iter().filter_map(role).collect::<Vec<_>>(),
        }));
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("root version {}, expires {}", root.version, root.expires));
    if draft {
        output::line("a draft of the next root is under way: skerry keys sign");
    }
    output::line("");
    let mut rows = Vec::new();
    for role in KeyRole::ALL {
        let Some(set) = role.keys_in(&root) else { continue };
        for (number, (id, key)) in set.keys.iter().enumerate() {
            let first = number == 0;
            let of = format!("{} of {}", set.threshold, set.keys.len());
            rows.push([
                if first { role.to_string() } else { String::new() },
                if first { of } else { String::new() },
                id.as_str()[..id.as_str().len().min(16)].to_owned(),
                name_of(key).to_owned(),
                match (held.contains(id), role.is_online()) {
                    (true, _) => "here".to_owned(),
                    (false, true) => "control plane".to_owned(),
                    (false, false) => "elsewhere".to_owned(),
                },
            ]);
        }
    }
    output::table(["role", "must sign", "key", "name", "private key"], rows);
    Ok(ExitCode::SUCCESS)
}

fn role_as_json(role: KeyRole, root: &skerry_tuf::Root, held: &[KeyId]) -> Option<Value> {
    let set = role.keys_in(root)?;
    let key = |(id, key): (&KeyId, &skerry_tuf::PublicKey)| json!({"id": id, "name": name_of(key), "here": held.contains(id)});
    Some(json!({
        "role": role.as_str(),
        "online": role.is_online(),
        "threshold": set.threshold,
        "keys": set.keys.iter().map(key).collect::<Vec<_>>(),
    }))
}
