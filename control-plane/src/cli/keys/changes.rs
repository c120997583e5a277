//! What a draft changes, in words, for whoever is about to sign it.
//!
//! Pure. Invariants: a difference that has no words of its own is a line all the same, so that no draft changes anything in
//! silence; a text of a draft stays within its line (`shown`).

use std::collections::BTreeMap;

use skerry_tuf::{
    Blocked, DelegatedPaths, DelegatedRole, Delegations, KeyId, PublicKey, Root, SearchOrder, TargetFile, Targets,
    TargetsExtension, UnixTime,
};

use crate::{
    cli::output::shown,
    signing::role::{KeyRole, name_of},
};

/// What a new root changes.
pub(super) fn of_root(old: &Root, new: &Root) -> Vec<String> {
    let mut lines = Vec::new();
    if old.consistent_snapshot != new.consistent_snapshot {
        lines.push(
            "files have other names: consistent_snapshot changes, which this control plane cannot serve".to_owned(),
        );
    }
    for role in KeyRole::ALL {
        let (Some(before), Some(after)) = (role.keys_in(old), role.keys_in(new)) else {
            if role.keys_in(old).is_some() || role.keys_in(new).is_some() {
                lines.push(format!("{role}: appears or disappears"));
            }
            continue;
        };
        for (id, key) in after.keys.iter().filter(|(id, _)| !before.keys.contains_key(*id)) {
            lines.push(format!("{role}: gets key {}", key_words(id, key)));
        }
        for (id, key) in before.keys.iter().filter(|(id, _)| !after.keys.contains_key(*id)) {
            lines.push(format!("{role}: loses key {}", key_words(id, key)));
        }
        if before.threshold != after.threshold {
            lines.push(format!(
                "{role}: {} instead of {} of {} keys must sign",
                after.threshold,
                before.threshold,
                after.keys.len()
            ));
        }
    }
    for (id, before, after) in both(&old.keys, &new.keys) {
        if before != after {
            lines.push(format!(
                "key {}: is called `{}` instead of `{}`, or says something else about itself",
                shown(id.as_str()),
                shown(name_of(after)),
                shown(name_of(before))
            ));
        }
    }
    let rest = |root: &Root| {
        let roles = [
            &root.roles.root,
            &root.roles.timestamp,
            &root.roles.snapshot,
            &root.roles.targets,
        ];
        let ours = root.extension.clone().unwrap_or_default();
        let of_ours = [ours.assignment, ours.time].map(|role| role.map(|role| role.extra));
        (
            root.spec_version.clone(),
            [root.extra.clone(), root.roles.extra.clone(), ours.extra],
            roles.map(|role| role.extra.clone()),
            of_ours,
        )
    };
    end(lines, rest(old) != rest(new), (Some(old.expires), new.expires))
}

/// What new targets metadata changes; without the published one everything in it.
pub(super) fn of_targets(published: Option<&Targets>, new: &Targets) -> Vec<String> {
    let nothing = Targets {
        targets: BTreeMap::new(),
        delegations: None,
        extension: None,
        ..new.clone()
    };
    let old = published.unwrap_or(&nothing);
    let mut lines = Vec::new();
    bundles(old, new, &mut lines);
    let of = |targets: &Targets| targets.extension.clone().unwrap_or_default();
    refusals(&of(old), &of(new), &mut lines);
    let delegated = |targets: &Targets| targets.delegations.clone().unwrap_or_default();
    delegations(&delegated(old), &delegated(new), &mut lines);
    let rest = |targets: &Targets| (targets.spec_version.clone(), targets.extra.clone(), of(targets).extra);
    end(
        lines,
        rest(old) != rest(new),
        (published.map(|published| published.expires), new.expires),
    )
}

fn bundles(old: &Targets, new: &Targets, lines: &mut Vec<String>) {
    for (name, file) in only_in(&new.targets, &old.targets) {
        lines.push(format!("+ bundle {}: {}", shown(name.as_str()), content(file)));
    }
    for (name, _) in only_in(&old.targets, &new.targets) {
        lines.push(format!(
            "- bundle {}: published bundles cannot be taken back, and the control plane will refuse this",
            shown(name.as_str())
        ));
    }
    for (name, before, after) in both(&old.targets, &new.targets) {
        let name = shown(name.as_str());
        if before.hashes != after.hashes || before.length != after.length {
            lines.push(format!(
                "! bundle {name}: {} INSTEAD OF {}; the control plane will refuse this",
                content(after),
                content(before)
            ));
        } else if before != after {
            lines.push(format!(
                "~ bundle {name}: the same content, but something else is said about it"
            ));
        }
    }
}

fn content(file: &TargetFile) -> String {
    let digests: Vec<String> = file
        .hashes
        .iter()
        .map(|(algorithm, digest)| format!("{} {}", shown(algorithm), shown(digest)))
        .collect();
    format!("{}, {} bytes", digests.join(", "), file.length)
}

fn refusals(old: &TargetsExtension, new: &TargetsExtension, lines: &mut Vec<String>) {
    let words = |blocked: &Blocked| format!("sha256 {}: {}", shown(&blocked.sha256), shown(&blocked.reason));
    for (name, blocked) in only_in(&new.blocked, &old.blocked) {
        lines.push(format!("+ blocks {}, {}", shown(name.as_str()), words(blocked)));
    }
    for (name, blocked) in only_in(&old.blocked, &new.blocked) {
        lines.push(format!(
            "- no longer blocks {}, {}",
            shown(name.as_str()),
            words(blocked)
        ));
    }
    for (name, before, after) in both(&old.blocked, &new.blocked) {
        if before != after {
            let name = shown(name.as_str());
            lines.push(format!("~ blocks {name}, {} (before: {})", words(after), words(before)));
        }
    }
    for (model, lowest) in only_in(&new.min_release, &old.min_release) {
        lines.push(format!("+ lowest version of {}: {lowest}", shown(model)));
    }
    for (model, lowest) in only_in(&old.min_release, &new.min_release) {
        lines.push(format!(
            "- no lowest version of {} any more; it was {lowest}",
            shown(model)
        ));
    }
    for (model, before, after) in both(&old.min_release, &new.min_release) {
        if before != after {
            lines.push(format!(
                "~ lowest version of {}: {after} instead of {before}",
                shown(model)
            ));
        }
    }
}

fn delegations(old: &Delegations, new: &Delegations, lines: &mut Vec<String>) {
    for role in new.roles.iter().filter(|role| !old.roles.contains(role)) {
        lines.push(format!("+ delegation {}", role_words(new, role)));
    }
    for role in old.roles.iter().filter(|role| !new.roles.contains(role)) {
        lines.push(format!("- delegation {}", role_words(old, role)));
    }
    // The first role that has a target decides, so their order counts, too.
    let named = |of: &Delegations| of.roles.iter().map(|role| role.name.clone()).collect::<Vec<_>>();
    let same = |a: &Delegations, b: &Delegations| a.roles.iter().all(|role| b.roles.contains(role));
    if same(old, new) && same(new, old) && named(old) != named(new) {
        lines.push("~ delegations are asked in another order".to_owned());
    }
    for (id, before, after) in both(&old.keys, &new.keys) {
        if before != after {
            lines.push(format!(
                "! delegations: ANOTHER key under the id {}",
                shown(id.as_str())
            ));
        }
    }
    for (id, key) in only_in(&new.keys, &old.keys) {
        lines.push(format!("+ key for delegations: {}", key_words(id, key)));
    }
    for (id, key) in only_in(&old.keys, &new.keys) {
        lines.push(format!("- key for delegations: {}", key_words(id, key)));
    }
    if old.extra != new.extra {
        lines.push("~ something else about delegations".to_owned());
    }
}

fn role_words(of: &Delegations, role: &DelegatedRole) -> String {
    let paths: Vec<String> = match &role.paths {
        DelegatedPaths::Patterns(patterns) => patterns.iter().map(|pattern| shown(pattern.as_str())).collect(),
        DelegatedPaths::HashPrefixes(prefixes) => prefixes
            .iter()
            .map(|prefix| format!("names whose digest begins with {}", shown(prefix)))
            .collect(),
    };
    let keys: Vec<String> = of
        .keys_of(role)
        .keys
        .iter()
        .map(|(id, key)| key_words(id, key))
        .collect();
    let last = match role.search {
        SearchOrder::Terminate => ", and has the last word",
        SearchOrder::Continue => "",
    };
    format!(
        "{} may sign for {}{last}: {} of {}",
        shown(role.name.as_str()),
        paths.join(", "),
        role.threshold,
        keys.join(", ")
    )
}

/// A key as it can be compared with what its holder says: by its own id, whatever id it is given here.
fn key_words(id: &KeyId, key: &PublicKey) -> String {
    let own = key.id();
    let alias = match own == *id {
        true => String::new(),
        false => format!(", listed as {}", shown(id.as_str())),
    };
    match name_of(key) {
        "" => format!("{own}{alias}"),
        name => format!("{own} ({}){alias}", shown(name)),
    }
}

fn end(mut lines: Vec<String>, more: bool, (before, after): (Option<UnixTime>, UnixTime)) -> Vec<String> {
    if more {
        lines.push("! something that this version of skerry has no words for: compare the two files".to_owned());
    }
    if lines.is_empty() {
        lines.push("nothing changes but the version and the date".to_owned());
    }
    lines.push(match before {
        Some(before) if before != after => format!("expires {after} instead of {before}"),
        _ => format!("expires {after}"),
    });
    lines
}

fn only_in<'a, K: Ord, V>(here: &'a BTreeMap<K, V>, there: &'a BTreeMap<K, V>) -> impl Iterator<Item = (&'a K, &'a V)> {
    here.iter().filter(|(key, _)| !there.contains_key(*key))
}

fn both<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V, &'a V)> {
    new.iter().filter_map(|(key, after)| Some((key, old.get(key)?, after)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use skerry_tuf::{KeySet, RoleName, SigningKey, TargetName, new_targets};

    use super::*;

    const LATER: i64 = 2_000_000_000;

    fn name(text: &str) -> TargetName {
        TargetName::new(text).unwrap()
    }

    fn published() -> Targets {
        let mut targets = new_targets(4, UnixTime::from_seconds(LATER));
        targets.add_target(name("har/1/index"), TargetFile::describe(b"one"));
        targets.add_target(name("har/2/index"), TargetFile::describe(b"two"));
        let extension = targets.extension.get_or_insert_default();
        let blocked = Blocked {
            sha256: "ab".repeat(32),
            reason: "it sees cats".to_owned(),
            extra: serde_json::Map::new(),
        };
        extension.blocked.insert(name("har/1/index"), blocked);
        extension.min_release.insert("har".to_owned(), 2);
        targets
    }

    /// What a change of the published metadata is called, without the last line.
    fn said(change: impl FnOnce(&mut Targets)) -> String {
        let (old, mut new) = (published(), published());
        new.version += 1;
        change(&mut new);
        let mut lines = of_targets(Some(&old), &new);
        assert!(lines.pop().unwrap().starts_with("expires "));
        lines.join("\n")
    }

    #[test]
    fn every_change_of_targets_has_words() {
        let digest = hex::encode(TargetFile::describe(b"three").sha256().unwrap());
        let added = said(|new| drop(new.add_target(name("har/3/index"), TargetFile::describe(b"three"))));
        assert_eq!(added, format!("+ bundle har/3/index: sha256 {digest}, 5 bytes"));
        let other = said(|new| drop(new.add_target(name("har/2/index"), TargetFile::describe(b"three"))));
        assert!(
            other.starts_with("! bundle har/2/index") && other.contains(&digest),
            "{other}"
        );
        let lost = said(|new| drop(new.targets.remove(&name("har/2/index"))));
        assert!(lost.starts_with("- bundle har/2/index"), "{lost}");
        let unblocked = said(|new| new.extension.as_mut().unwrap().blocked.clear());
        assert!(unblocked.starts_with("- no longer blocks har/1/index"), "{unblocked}");
        let lower = said(|new| *new.extension.as_mut().unwrap().min_release.get_mut("har").unwrap() = 1);
        assert_eq!(lower, "~ lowest version of har: 1 instead of 2");
        let none = said(|new| new.extension.as_mut().unwrap().min_release.clear());
        assert!(none.starts_with("- no lowest version of har"), "{none}");
        let custom = json!({"model": "cats"}).as_object().cloned();
        let about = said(|new| new.targets.values_mut().for_each(|file| file.custom = custom.clone()));
        assert_eq!(about.matches("something else is said about it").count(), 2, "{about}");
        assert_eq!(said(|_| ()), "nothing changes but the version and the date");
    }

    #[test]
    fn a_delegation_is_shown_with_its_keys_and_names() {
        let key = SigningKey::from_seed(&[7; 32]).public_key();
        let paths = DelegatedPaths::Patterns(vec![skerry_tuf::PathPattern::new("*/*/index")]);
        let role = RoleName::new("helpers").unwrap();
        let delegated = said(|new| {
            let delegations = new.delegations.get_or_insert_default();
            delegations.delegate(role, KeySet::single(key.clone()), paths, SearchOrder::Terminate);
        });
        for part in [
            "+ delegation helpers",
            "*/*/index",
            "1 of ",
            key.id().as_str(),
            "last word",
        ] {
            assert!(delegated.contains(part), "{part}: {delegated}");
        }
    }

    #[test]
    fn what_has_no_words_is_a_line_all_the_same() {
        let unknown = |new: &mut Targets| drop(new.extra.insert("x_other".to_owned(), json!(true)));
        assert!(said(unknown).contains("has no words for"));
        let version = |new: &mut Targets| new.spec_version = "1.0.99".to_owned();
        assert!(said(version).contains("has no words for"));
    }

    #[test]
    fn without_the_published_metadata_everything_is_shown() {
        let lines = of_targets(None, &published());
        assert_eq!(lines.len(), 5, "{lines:?}");
    }

    #[test]
    fn a_text_of_the_draft_stays_in_its_line() {
        let trick = "fine\u{1b}[2K\r\n- bundle har/2/index\u{202e}";
        let blocked = Blocked {
            sha256: trick.to_owned(),
            reason: trick.to_owned(),
            extra: serde_json::Map::new(),
        };
        let lines = said(|new| {
            let extension = new.extension.as_mut().unwrap();
            extension.blocked.insert(name("har/2/index"), blocked);
            extension.min_release.insert(trick.to_owned(), 9);
        });
        assert_eq!(lines.lines().count(), 2, "{lines}");
        let plain = |c: char| c == '\n' || (!c.is_control() && c != '\u{202e}');
        assert!(lines.chars().all(plain), "{lines:?}");
    }

    #[test]
    fn a_key_is_called_by_its_own_id() {
        let (mine, theirs) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let words = key_words(&mine.public_key().id(), &theirs.public_key());
        assert!(words.starts_with(theirs.public_key().id().as_str()), "{words}");
    }
}
