//! Attacks on and through delegated roles (TUF §5.6.7), and the order in which roles are asked.

use super::*;
use crate::delegation::{DelegatedPaths, Delegations, RoleName, SearchOrder};
use crate::path_pattern::PathPattern;
use crate::search::{SearchStep, TargetSearch};

/// Keys of delegated roles in these tests.
const CAMERA: u8 = 21;
const AUDIO: u8 = 22;
const STRANGER: u8 = 99;

fn role(name: &str) -> RoleName {
    RoleName::new(name).unwrap()
}

fn name(text: &str) -> TargetName {
    TargetName::new(text).unwrap()
}

fn patterns(list: &[&str]) -> DelegatedPaths {
    DelegatedPaths::Patterns(list.iter().map(|text| PathPattern::new(*text)).collect())
}

/// A role that is delegated to: who signs for what.
#[derive(Clone)]
struct To {
    role: &'static str,
    keys: KeySet,
    paths: DelegatedPaths,
    search: SearchOrder,
}

fn to(role: &'static str, key: u8, paths: &[&str]) -> To {
    To {
        role,
        keys: key_set(&[key], 1),
        paths: patterns(paths),
        search: SearchOrder::Continue,
    }
}

fn terminating(to: To) -> To {
    To {
        search: SearchOrder::Terminate,
        ..to
    }
}

fn delegating(roles: &[To]) -> Targets {
    let mut targets = new_targets(1, expires());
    if !roles.is_empty() {
        let delegations = targets.delegations.insert(Delegations::default());
        for to in roles {
            delegations.delegate(role(to.role), to.keys.clone(), to.paths.clone(), to.search);
        }
    }
    targets
}

fn with_target(mut targets: Targets, target: &str, content: &[u8]) -> Targets {
    targets.add_target(name(target), TargetFile::describe(content));
    targets
}

/// A repository of a top-level targets file and delegated files, all of which the snapshot lists.
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
    set: TrustedSet,
}

impl Tree {
    fn new(top: &Targets, files: &[(&str, Vec<u8>)]) -> Self {
        Self::listing(top, files, |_| {})
    }

    /// The same with a snapshot that is not quite right.
    fn listing(top: &Targets, files: &[(&str, Vec<u8>)], change: impl FnOnce(&mut Snapshot)) -> Self {
        let top = sign(top, &[TARGETS]);
        let mut snapshot = new_snapshot(1, expires(), MetaFile::describe(1, &top));
        for (role, file) in files {
            let listed = MetaFile::describe(1, file);
            snapshot.meta.insert(format!("{role}.json"), listed);
        }
        change(&mut snapshot);
        let mut set = expecting_snapshot();
        set.update_snapshot(&sign(&snapshot, &[SNAPSHOT]), today()).unwrap();
        set.update_targets(&top, today()).unwrap();
        let files = files
            .iter()
            .map(|(role, file)| ((*role).to_owned(), file.clone()))
            .collect();
        Self { files, set }
    }

    /// Searches with the files of the repository: the answer, and the roles that were asked.
    fn search(&self, target: &str) -> (Result<SearchStep, Error>, Vec<String>) {
        let target = name(target);
        let mut search = self.set.search(&target, today()).unwrap();
        let mut asked = Vec::new();
        loop {
            let step = search.step();
            let Ok(SearchStep::Needs { role, .. }) = &step else {
                return (step, asked);
            };
            asked.push(role.to_string());
            if let Err(error) = search.offer(&self.files[role.as_str()]) {
                return (Err(error), asked);
            }
        }
    }

    #[track_caller]
    fn finds(&self, target: &str, content: &[u8], asked: &[&str]) {
        let (found, roles) = self.search(target);
        assert_eq!(found.unwrap(), SearchStep::Found(TargetFile::describe(content)));
        assert_eq!(roles, asked);
    }

    #[track_caller]
    fn lacks(&self, target: &str, asked: &[&str]) {
        let (found, roles) = self.search(target);
        assert_eq!(found.unwrap(), SearchStep::Absent);
        assert_eq!(roles, asked);
    }

    #[track_caller]
    fn refuses(&self, target: &str, code: &str) {
        let error = self.search(target).0.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
    }
}

/// Offers `bytes` for the next role: refused with `code`, and the role is needed as before.
#[track_caller]
fn not_believed(search: &mut TargetSearch<'_>, code: &str, bytes: &[u8]) {
    let before = search.step().unwrap();
    let error = search.offer(bytes).unwrap_err();
    assert_eq!(error.code(), code, "{error:?}");
    assert_eq!(search.step().unwrap(), before, "a rejected file changed the search");
}

fn camera_file(content: &[u8]) -> Vec<u8> {
    sign(&with_target(delegating(&[]), "camera/model", content), &[CAMERA])
}

/// A tree of one delegated role with one target.
fn camera_tree() -> Tree {
    let top = delegating(&[to("camera", CAMERA, &["camera/*"])]);
    Tree::new(&top, &[("camera", camera_file(b"model"))])
}

#[test]
fn a_target_of_a_delegated_role_is_found_and_only_that_role_is_asked() {
    let top = with_target(
        delegating(&[
            to("audio", AUDIO, &["audio/*"]),
            to("camera", CAMERA, &["camera/*", "*.onnx"]),
        ]),
        "top",
        b"top",
    );
    let audio = sign(&delegating(&[]), &[AUDIO]);
    let tree = Tree::new(&top, &[("audio", audio), ("camera", camera_file(b"model"))]);
    tree.finds("top", b"top", &[]);
    tree.finds("camera/model", b"model", &["camera"]);
    tree.lacks("camera/other", &["camera"]);
    tree.lacks("other/model", &[]);
}

#[test]
fn the_file_of_a_role_is_asked_for_by_version_length_and_encoded_name() {
    let top = delegating(&[to("cameras/front", CAMERA, &["camera/*"])]);
    let file = camera_file(b"model");
    let tree = Tree::new(&top, &[("cameras/front", file.clone())]);
    let target = name("camera/model");
    let mut search = tree.set.search(&target, today()).unwrap();
    let SearchStep::Needs { role, file: wanted } = search.step().unwrap() else {
        panic!("no role is needed");
    };
    assert_eq!(role.as_str(), "cameras/front");
    assert_eq!(wanted.file_name, "1.cameras%2Ffront.json");
    assert_eq!((wanted.version, wanted.max_bytes), (1, file.len()));
}

#[test]
fn without_consistent_snapshots_names_have_no_version() {
    let mut metadata = root_metadata(1, |_| {});
    metadata.consistent_snapshot = false;
    let mut set = TrustedSet::new(&sign(&metadata, &[ROOT])).unwrap();
    let top = sign(&delegating(&[to("camera", CAMERA, &["camera/*"])]), &[TARGETS]);
    let mut snapshot = new_snapshot(1, expires(), version_only(1));
    snapshot.meta.insert("camera.json".to_owned(), version_only(1));
    set.update_timestamp(&timestamp_listing(1, version_only(1)), today())
        .unwrap();
    assert_eq!(set.wanted_snapshot().unwrap().file_name, "snapshot.json");
    set.update_snapshot(&sign(&snapshot, &[SNAPSHOT]), today()).unwrap();
    assert_eq!(set.wanted_targets().unwrap().file_name, "targets.json");
    set.update_targets(&top, today()).unwrap();
    let target = name("camera/model");
    let SearchStep::Needs { file, .. } = set.search(&target, today()).unwrap().step().unwrap() else {
        panic!("no role is needed");
    };
    assert_eq!(file.file_name, "camera.json");
    // Root files have one in either case.
    assert_eq!(set.next_root_file().file_name, "2.root.json");
}

#[test]
fn roles_are_asked_depth_first_in_the_order_of_the_metadata() {
    let all = |role, key| to(role, key, &["*"]);
    let top = delegating(&[all("a", 31), all("b", 32)]);
    let tree = Tree::new(
        &top,
        &[
            ("a", sign(&delegating(&[all("c", 33), all("d", 34)]), &[31])),
            ("b", sign(&delegating(&[]), &[32])),
            ("c", sign(&delegating(&[all("e", 35)]), &[33])),
            ("d", sign(&with_target(delegating(&[]), "model", b"of d"), &[34])),
            ("e", sign(&delegating(&[]), &[35])),
        ],
    );
    tree.lacks("missing", &["a", "c", "e", "d", "b"]);
    tree.finds("model", b"of d", &["a", "c", "e", "d"]);
}

#[test]
fn attack_a_role_after_a_terminating_one_does_not_get_the_target() {
    let late = sign(&with_target(delegating(&[]), "camera/model", b"late"), &[AUDIO]);
    let tree = |search: fn(To) -> To| {
        let top = delegating(&[
            search(to("camera", CAMERA, &["camera/*"])),
            to("audio", AUDIO, &["*/*"]),
        ]);
        let camera = sign(&delegating(&[]), &[CAMERA]);
        Tree::new(&top, &[("camera", camera), ("audio", late.clone())])
    };
    tree(|to| to).finds("camera/model", b"late", &["camera", "audio"]);
    tree(terminating).lacks("camera/model", &["camera"]);
}

#[test]
fn attack_a_role_beside_the_delegator_of_a_terminating_one_does_not_get_the_target() {
    let late = sign(&with_target(delegating(&[]), "model", b"late"), &[AUDIO]);
    let tree = |search: fn(To) -> To| {
        let top = delegating(&[to("a", 31, &["*"]), to("audio", AUDIO, &["*"])]);
        let a = sign(&delegating(&[search(to("c", 33, &["*"])), to("d", 34, &["*"])]), &[31]);
        let empty = |key| sign(&delegating(&[]), &[key]);
        Tree::new(
            &top,
            &[("a", a), ("c", empty(33)), ("d", empty(34)), ("audio", late.clone())],
        )
    };
    tree(|to| to).finds("model", b"late", &["a", "c", "d", "audio"]);
    tree(terminating).lacks("model", &["a", "c"]);
}

#[test]
fn attack_a_role_signs_for_a_target_outside_its_paths() {
    let camera = sign(&with_target(delegating(&[]), "audio/model", b"stolen"), &[CAMERA]);
    let tree = |paths: &[&str]| {
        let top = delegating(&[to("camera", CAMERA, paths)]);
        Tree::new(&top, &[("camera", camera.clone())])
    };
    tree(&["audio/*"]).finds("audio/model", b"stolen", &["camera"]);
    tree(&["camera/*"]).lacks("audio/model", &[]);
    tree(&["*"]).lacks("audio/model", &[]);
}

#[test]
fn attack_a_role_passes_on_more_than_it_has() {
    let below = sign(&with_target(delegating(&[]), "audio/model", b"stolen"), &[AUDIO]);
    let tree = |paths: &[&str]| {
        let top = delegating(&[to("camera", CAMERA, paths)]);
        let camera = sign(&delegating(&[to("below", AUDIO, &["*/*"])]), &[CAMERA]);
        Tree::new(&top, &[("camera", camera), ("below", below.clone())])
    };
    tree(&["*/*"]).finds("audio/model", b"stolen", &["camera", "below"]);
    tree(&["camera/*"]).lacks("audio/model", &[]);
}

#[test]
fn attack_a_delegated_file_by_a_stranger_or_an_online_key() {
    camera_tree().finds("camera/model", b"model", &["camera"]);
    let top = delegating(&[to("camera", CAMERA, &["camera/*"])]);
    let file = with_target(delegating(&[]), "camera/model", b"forged");
    for signer in [STRANGER, TIMESTAMP, SNAPSHOT, TARGETS, ROOT, AUDIO] {
        Tree::new(&top, &[("camera", sign(&file, &[signer]))]).refuses("camera/model", "sig_threshold");
    }
}

#[test]
fn attack_one_stolen_key_of_a_delegated_role_with_threshold_two() {
    let top = delegating(&[To {
        keys: key_set(&[CAMERA, AUDIO], 2),
        ..to("camera", CAMERA, &["camera/*"])
    }]);
    let file = with_target(delegating(&[]), "camera/model", b"model");
    let tree = |signers: &[u8]| Tree::new(&top, &[("camera", sign(&file, signers))]);
    tree(&[CAMERA, AUDIO]).finds("camera/model", b"model", &["camera"]);
    tree(&[CAMERA]).refuses("camera/model", "sig_threshold");
    tree(&[CAMERA, STRANGER]).refuses("camera/model", "sig_threshold");
}

/// The weak spot of clients that remember delegated roles by name.
#[test]
fn attack_a_file_that_one_delegator_vouches_for_is_offered_under_another() {
    let release = with_target(delegating(&[]), "a/model", b"of a");
    let release = sign(&with_target(release, "b/model", b"not of b"), &[CAMERA]);
    let top = delegating(&[to("parent-a", 31, &["a/*"]), to("parent-b", 32, &["b/*"])]);
    let tree = |key_of_b| {
        let parent_a = sign(&delegating(&[to("release", CAMERA, &["a/*"])]), &[31]);
        let parent_b = sign(&delegating(&[to("release", key_of_b, &["b/*"])]), &[32]);
        let files = [
            ("parent-a", parent_a),
            ("parent-b", parent_b),
            ("release", release.clone()),
        ];
        Tree::new(&top, &files)
    };
    tree(CAMERA).finds("b/model", b"not of b", &["parent-b", "release"]);

    let diamond = tree(AUDIO);
    diamond.finds("a/model", b"of a", &["parent-a", "release"]);
    let target = name("b/model");
    let mut search = diamond.set.search(&target, today()).unwrap();
    search.step().unwrap();
    search.offer(&diamond.files["parent-b"]).unwrap();
    // From the cache of the search before, and again from the repository.
    not_believed(&mut search, "sig_threshold", &release);
    not_believed(&mut search, "sig_threshold", &diamond.files["release"]);
    // That it failed here does not harm the other path.
    diamond.finds("a/model", b"of a", &["parent-a", "release"]);
}

#[test]
fn attack_a_cached_file_of_a_role_whose_keys_were_rotated() {
    let cached = camera_file(b"old");
    let tree = |key| {
        let top = delegating(&[to("camera", key, &["camera/*"])]);
        Tree::new(&top, &[("camera", cached.clone())])
    };
    tree(CAMERA).finds("camera/model", b"old", &["camera"]);
    let rotated = tree(AUDIO);
    let target = name("camera/model");
    let mut search = rotated.set.search(&target, today()).unwrap();
    not_believed(&mut search, "sig_threshold", &cached);
}

#[test]
fn attack_mix_and_match_of_delegated_files() {
    let tree = camera_tree();
    let target = name("camera/model");
    let mut search = tree.set.search(&target, today()).unwrap();
    // Same length, other content; then another length.
    not_believed(&mut search, "hash", &camera_file(b"other"));
    not_believed(&mut search, "length", &sign(&delegating(&[]), &[CAMERA]));

    // Listed by version only, an older file fails on its version.
    let version_two = Tree::listing(
        &delegating(&[to("camera", CAMERA, &["camera/*"])]),
        &[("camera", tree.files["camera"].clone())],
        |snapshot| {
            snapshot.meta.insert("camera.json".to_owned(), version_only(2));
        },
    );
    let mut search = version_two.set.search(&target, today()).unwrap();
    not_believed(&mut search, "mix_and_match", &tree.files["camera"]);

    // Control: the file that is listed.
    let mut search = tree.set.search(&target, today()).unwrap();
    search.offer(&tree.files["camera"]).unwrap();
    assert!(matches!(search.step().unwrap(), SearchStep::Found(_)));
}

#[test]
fn attack_freeze_of_a_delegated_role() {
    camera_tree().finds("camera/model", b"model", &["camera"]);
    let mut old = with_target(delegating(&[]), "camera/model", b"model");
    old.expires = time("2020-01-01T00:00:00Z");
    let top = delegating(&[to("camera", CAMERA, &["camera/*"])]);
    Tree::new(&top, &[("camera", sign(&old, &[CAMERA]))]).refuses("camera/model", "expired");
}

#[test]
fn attack_a_delegated_role_that_the_snapshot_hides() {
    camera_tree().finds("camera/model", b"model", &["camera"]);
    let top = delegating(&[to("camera", CAMERA, &["camera/*"])]);
    let hidden = Tree::listing(&top, &[("camera", camera_file(b"model"))], |snapshot| {
        snapshot.meta.remove("camera.json");
    });
    // "Absent" would be a lie that the snapshot key could tell.
    hidden.refuses("camera/model", "not_listed");
}

#[test]
fn attack_endless_delegated_file() {
    let tree = camera_tree();
    tree.finds("camera/model", b"model", &["camera"]);
    let target = name("camera/model");
    let mut search = tree.set.search(&target, today()).unwrap();
    let endless = vec![b' '; tree.set.limits().targets_bytes + 1];
    not_believed(&mut search, "too_large", &endless);
}

#[test]
fn attack_a_cycle_of_delegations() {
    let top = delegating(&[to("a", 31, &["*"])]);
    let a = sign(&delegating(&[to("b", 32, &["*"])]), &[31]);
    let tree = |back: &[To]| {
        let b = sign(&with_target(delegating(back), "model", b"of b"), &[32]);
        Tree::new(&top, &[("a", a.clone()), ("b", b)])
    };
    tree(&[]).lacks("missing", &["a", "b"]);
    let cycle = tree(&[to("a", 31, &["*"]), to("b", 32, &["*"])]);
    cycle.lacks("missing", &["a", "b"]);
    cycle.finds("model", b"of b", &["a", "b"]);
}

/// `count` roles, each of which `delegator` names or the one before it.
fn many(count: usize, is_chain: bool) -> Tree {
    let names: Vec<&'static str> = (0..count)
        .map(|index| &*Box::leak(format!("role-{index}").into_boxed_str()))
        .collect();
    let all: Vec<To> = names.iter().map(|name| to(name, CAMERA, &["*"])).collect();
    let top = delegating(if is_chain { &all[..1] } else { &all });
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let next = all.get(index + 1..=index + 1).filter(|_| is_chain).unwrap_or(&[]);
            (*name, sign(&delegating(next), &[CAMERA]))
        })
        .collect();
    Tree::new(&top, &files)
}

#[test]
fn attack_endless_delegations_end_at_the_limit() {
    let limits = Limits::default();
    assert_eq!(
        many(limits.delegated_roles, false).search("x").0.unwrap(),
        SearchStep::Absent
    );
    many(limits.delegated_roles + 1, false).refuses("x", "too_many_delegations");
    assert_eq!(
        many(limits.delegation_depth, true).search("x").0.unwrap(),
        SearchStep::Absent
    );
    many(limits.delegation_depth + 1, true).refuses("x", "too_many_delegations");
}

#[test]
fn attack_a_delegated_role_called_root() {
    let good = sign(&delegating(&[to("camera", CAMERA, &["*"])]), &[TARGETS]);
    let mut set = expecting_snapshot();
    set.update_snapshot(
        &sign(&new_snapshot(1, expires(), version_only(1)), &[SNAPSHOT]),
        today(),
    )
    .unwrap();
    for top in ["root", "timestamp", "snapshot", "targets", ""] {
        let forged = tampered(&good, |file| {
            file["signed"]["delegations"]["roles"][0]["name"] = json!(top)
        });
        refused(&mut set, "parse", |set| set.update_targets(&forged, today()));
    }
    set.update_targets(&good, today()).unwrap();
}

#[test]
fn a_search_needs_fresh_targets() {
    let tree = camera_tree();
    let target = name("camera/model");
    assert!(tree.set.search(&target, today()).is_ok());
    assert_eq!(tree.set.search(&target, after_expiry()).unwrap_err().code(), "expired");
    assert_eq!(fresh().search(&target, today()).unwrap_err().code(), "out_of_order");
}

#[test]
fn a_way_to_divide_targets_that_we_do_not_know_is_kept_and_not_followed() {
    let mut top = new_targets(1, expires());
    let bins =
        json!({"keys": {}, "succinct_roles": {"keyids": [], "threshold": 1, "bit_length": 4, "name_prefix": "bin"}});
    top.delegations = Some(serde_json::from_value(bins.clone()).unwrap());
    assert_eq!(serde_json::to_value(&top.delegations).unwrap(), bins);
    Tree::new(&top, &[]).lacks("camera/model", &[]);
}

#[test]
fn a_key_of_an_unknown_type_in_a_delegation_does_not_count_and_does_no_harm() {
    let mut top = delegating(&[to("camera", CAMERA, &["camera/*"])]);
    let delegations = top.delegations.as_mut().unwrap();
    let later = json!({"keytype": "later", "scheme": "later", "keyval": {"identity": "someone"}});
    let later = serde_json::from_value(later).unwrap();
    delegations.keys.insert(KeyId::new("later"), later);
    delegations.roles[0].keyids.insert(KeyId::new("later"));
    Tree::new(&top, &[("camera", camera_file(b"model"))]).finds("camera/model", b"model", &["camera"]);
}

proptest! {
    #[test]
    fn any_bytes_offered_for_a_role_are_refused_without_a_trace(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let tree = camera_tree();
        let target = name("camera/model");
        let mut search = tree.set.search(&target, today()).unwrap();
        let before = search.step().unwrap();
        prop_assert!(search.offer(&bytes).is_err());
        prop_assert_eq!(search.step().unwrap(), before);
    }
}
