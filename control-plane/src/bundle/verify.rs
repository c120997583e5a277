//! Proves a bundle folder without a server: content, signatures and lineage, from the trusted root down to the data set.
//!
//! It asks whether the bundle is what its publisher released, not whether a device would take it today: metadata that has
//! expired is reported and does not fail. Invariant: nothing in a [`VerifiedFolder`] was believed before its signature.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use skerry_shared::{
    bundle::MANIFEST_NAME,
    digest::Digest,
    lineage::{self, LineageError, Link},
    schema::Envelope,
};
use skerry_tuf::{Limits, Role, Signed, TargetName, TargetNameError, Targets, TrustedSet, UnixTime};

use super::folder::{BundleFolder, BundleSummary, FolderError};

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The content of the folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file of the folder says something else than the chunk index.
    #[error("`{0}` in the bundle folder is not what the chunk index holds")]
    Copy(&'static str),
    /// A file in `chunks` that no file of the bundle needs.
    #[error("`{0}` does not belong to the bundle")]
    Stray(PathBuf),
    /// A trusted root is unusable, or does not follow the one before it.
    #[error("root metadata {path} is refused")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        source: skerry_tuf::Error,
    },
    /// The targets metadata is malformed, or not signed by enough of the root's targets keys.
    #[error("the targets metadata is refused")]
    Targets(#[source] skerry_tuf::Error),
    /// The bundle's name makes no target name.
    #[error("the bundle has no valid target name")]
    TargetName(#[from] TargetNameError),
    /// The signed metadata does not name the bundle.
    #[error("the signed targets metadata does not name `{0}`")]
    NoTarget(String),
    /// The signed metadata names another chunk index.
    #[error("the chunk index is not the one that was signed")]
    Index(#[source] skerry_tuf::Error),
    /// The lineage is of another bundle.
    #[error(transparent)]
    Lineage(#[from] LineageError),
    /// The data set beside the bundle is another one.
    #[error("the data set is {found}, and the lineage names {}", named.map_or("none".to_owned(), |digest| digest.to_string()))]
    Dataset {
        /// What lies there.
        found: Digest,
        /// What was signed.
        named: Option<Digest>,
    },
}

/// What was proved of a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedFolder {
    /// What it is and weighs.
    #[serde(flatten)]
    pub summary: BundleSummary,
    /// The files in it, the manifest with them.
    pub files: usize,
    /// The distinct chunks.
    pub chunks: usize,
    /// The version of the root that vouches for it.
    pub root_version: u64,
    /// The version of the targets metadata.
    pub targets_version: u64,
    /// How many targets keys must have signed; so many have.
    pub threshold: u32,
    /// When the targets metadata expires, or has.
    pub targets_expire: String,
    /// True when it has: no device takes it with this metadata any more.
    pub expired: bool,
    /// Why no device runs it any more, if this metadata blocks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// The lowest version of the model that devices may be told to install; 0 if nothing is said.
    pub min_release: u64,
    /// When the bundle was built, in UTC milliseconds.
    pub created_at_ms: u64,
    /// Where the model comes from.
    pub lineage: Vec<Link>,
}

/// Proves a bundle folder. The first of `roots` is trusted, each next one must follow it.
///
/// # Errors
/// [`BundleError`] naming the first thing that is wrong.
pub fn verify(folder: &Path, roots: &[(PathBuf, Vec<u8>)], now: UnixTime) -> Result<VerifiedFolder, BundleError> {
    let bundle = BundleFolder::open(folder)?;
    let chunks = check_copies(folder, &bundle)?;
    let trusted = trusted_set(roots)?;
    let root = trusted.root();
    let keys = root.keys_of(Role::Targets);
    let signed = Signed::<Targets>::parse(&bundle.signed_targets()?, &Limits::default())
        .and_then(|signed| signed.verify(&keys, root.version))
        .map_err(BundleError::Targets)?;
    let targets = signed.metadata();
    let name = TargetName::new(bundle.summary.target.clone())?;
    let entry = targets
        .find(&name)
        .ok_or_else(|| BundleError::NoTarget(bundle.summary.target.clone()))?;
    entry.check(&name, &bundle.index_bytes()).map_err(BundleError::Index)?;
    lineage::check(&bundle.manifest)?;
    Ok(VerifiedFolder {
        files: bundle.index.files().len(),
        chunks,
        root_version: root.version,
        targets_version: targets.version,
        threshold: keys.threshold.get(),
        targets_expire: targets.expires.to_string(),
        expired: targets.expires <= now,
        blocked: targets
            .blocked(name.as_str(), bundle.summary.index.as_bytes())
            .map(|blocked| blocked.reason.clone()),
        min_release: targets.min_release(bundle.summary.model.as_str()),
        created_at_ms: bundle.manifest.created_at_ms,
        lineage: lineage::links(&bundle.manifest),
        summary: bundle.summary,
    })
}

fn trusted_set(roots: &[(PathBuf, Vec<u8>)]) -> Result<TrustedSet, BundleError> {
    let mut set: Option<TrustedSet> = None;
    for (path, bytes) in roots {
        let refused = |source| BundleError::Root {
            path: path.clone(),
            source,
        };
        match &mut set {
            None => set = Some(TrustedSet::new(bytes).map_err(refused)?),
            Some(set) => drop(set.update_root(bytes).map_err(refused)?),
        }
    }
    // Without a root nothing is trusted: an empty file is none.
    match set {
        Some(set) => Ok(set),
        None => TrustedSet::new(&[]).map_err(|source| BundleError::Root {
            path: PathBuf::new(),
            source,
        }),
    }
}

/// Checks what lies in the folder beside the index and its chunks. Returns how many distinct chunks there are.
fn check_copies(folder: &Path, bundle: &BundleFolder) -> Result<usize, BundleError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|source| FolderError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })
    };
    // A manifest that says the same in other bytes is not the signed one.
    if read(&folder.join(MANIFEST_NAME))? != bundle.manifest.to_json() {
        return Err(BundleError::Copy(MANIFEST_NAME));
    }
    let summary: Option<BundleSummary> = serde_json::from_slice(&read(&folder.join("bundle.json"))?).ok();
    if summary.as_ref() != Some(&bundle.summary) {
        return Err(BundleError::Copy("bundle.json"));
    }
    let known: BTreeSet<String> = bundle.index.chunks().iter().map(|chunk| chunk.wire.to_hex()).collect();
    let path = folder.join("chunks");
    let entries = fs::read_dir(&path).map_err(|source| FolderError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    for entry in entries {
        let name = entry.map(|entry| entry.file_name()).map_err(|source| FolderError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        if !name.to_str().is_some_and(|name| known.contains(name)) {
            return Err(BundleError::Stray(path.join(name)));
        }
    }
    Ok(known.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_shared::{
        bundle::{Approval, Lineage},
        id::ModelVersion,
    };

    use super::*;
    use crate::{
        bundle::{
            build::{BuildOptions, SelfCheck, build},
            sign::sign,
            spec::Spec,
        },
        cli::keys,
        signing::key_file,
    };

    const ONNX: &str = "../firmware-examples/activity-recognition/models/v1/model.onnx";

    /// A bundle of one small model, signed.
    struct Signed {
        folder: tempfile::TempDir,
    }

    impl Signed {
        fn new() -> Signed {
            let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join(ONNX);
            Signed::with(Lineage {
                onnx: Some(Digest::of(&fs::read(onnx).unwrap())),
                approved: Some(Approval {
                    by: "bob".to_owned(),
                    at_ms: 1,
                }),
                ..Lineage::default()
            })
        }

        fn with(lineage: Lineage) -> Signed {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path();
            let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join(ONNX);
            let model = skerry_inference::check_model(&fs::read(&onnx).unwrap()).unwrap();
            fs::write(path.join("card.md"), "a card").unwrap();
            fs::copy(onnx, path.join("model.onnx")).unwrap();
            let tensors = |tensors: &[skerry_shared::oip::TensorMetadata]| {
                let tensors = tensors.iter().map(|tensor| {
                    let (name, datatype) = (&tensor.name, serde_json::to_value(tensor.datatype).unwrap());
                    format!(
                        "{{name = \"{name}\", datatype = {datatype}, shape = {:?}}}",
                        tensor.shape
                    )
                });
                tensors.collect::<Vec<_>>().join(", ")
            };
            let text = format!(
                "model = \"m\"\nonnx = \"model.onnx\"\ndocuments = [\"card.md\"]\ninputs = [{}]\noutputs = [{}]\n\
                 [[stage]]\nname = \"classify\"\nmodel = true\n",
                tensors(&model.inputs),
                tensors(&model.outputs)
            );
            fs::write(path.join("spec.toml"), text).unwrap();
            let options = BuildOptions {
                version: ModelVersion(1),
                created_at_ms: 5,
                lineage,
                self_check: SelfCheck::Skip,
            };
            let spec = Spec::read(&path.join("spec.toml")).unwrap();
            let bundle = build(&spec, &options, &path.join("out")).unwrap();
            keys::init(&path.join("keys")).unwrap();
            let key = key_file::read(&path.join("keys/targets.key"), || panic!("not encrypted")).unwrap();
            let read = |name: &str| fs::read(path.join("keys").join(name)).unwrap();
            let expires = UnixTime::from_seconds(1000);
            let signed = sign(
                &bundle,
                &read("root.json"),
                &read("online/targets.json"),
                std::slice::from_ref(&key),
                expires,
            )
            .unwrap();
            bundle.store_signed_targets(&signed).unwrap();
            Signed { folder }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("out")
        }

        fn verify(&self) -> Result<VerifiedFolder, BundleError> {
            let root = self.folder.path().join("keys/root.json");
            let roots = [(root.clone(), fs::read(root).unwrap())];
            verify(&self.path(), &roots, UnixTime::from_seconds(0))
        }

        /// Flips one bit in the middle of a file, looks, and flips it back.
        fn flipped(&self, path: &Path) -> BundleError {
            let whole = fs::read(path).unwrap();
            let mut broken = whole.clone();
            broken[whole.len() / 2] ^= 1;
            fs::write(path, &broken).unwrap();
            let error = self.verify().unwrap_err();
            fs::write(path, whole).unwrap();
            error
        }
    }

    #[test]
    fn a_bundle_is_proved_from_the_root_to_its_lineage() {
        let bundle = Signed::new();
        let verified = bundle.verify().unwrap();
        assert_eq!(
            (verified.files, verified.threshold, verified.targets_version),
            (3, 1, 2)
        );
        assert!(!verified.expired);
        let approval = verified.lineage.iter().find(|link| link.what == "approval").unwrap();
        assert_eq!(approval.by.as_deref(), Some("bob"));
    }

    #[test]
    fn a_flipped_bit_in_every_kind_of_file_is_found() {
        let bundle = Signed::new();
        let path = bundle.path();
        for entry in fs::read_dir(path.join("chunks")).unwrap() {
            let error = bundle.flipped(&entry.unwrap().path());
            assert!(
                matches!(error, BundleError::Folder(FolderError::Chunk { .. })),
                "{error:?}"
            );
        }
        let error = bundle.flipped(&path.join("index.skci"));
        let refused = matches!(
            error,
            BundleError::Folder(
                FolderError::Index { .. }
                    | FolderError::Io { .. }
                    | FolderError::Chunk { .. }
                    | FolderError::File { .. }
            ) | BundleError::Index(_)
        );
        assert!(refused, "{error:?}");
        let error = bundle.flipped(&path.join("manifest.json"));
        assert!(matches!(error, BundleError::Copy("manifest.json")), "{error:?}");
        let error = bundle.flipped(&path.join("bundle.json"));
        assert!(matches!(error, BundleError::Copy("bundle.json")), "{error:?}");
        let error = bundle.flipped(&path.join("targets.json"));
        assert!(matches!(error, BundleError::Targets(_)), "{error:?}");
        let error = bundle.flipped(&bundle.folder.path().join("keys/root.json"));
        assert!(matches!(error, BundleError::Root { .. }), "{error:?}");
        bundle.verify().unwrap();
    }

    #[test]
    fn a_missing_and_a_stray_chunk_are_found() {
        let bundle = Signed::new();
        let stray = bundle.path().join("chunks/stray");
        fs::write(&stray, "x").unwrap();
        assert!(matches!(bundle.verify(), Err(BundleError::Stray(_))));
        fs::remove_file(stray).unwrap();
        let first = fs::read_dir(bundle.path().join("chunks")).unwrap().next().unwrap();
        fs::remove_file(first.unwrap().path()).unwrap();
        assert!(matches!(
            bundle.verify(),
            Err(BundleError::Folder(FolderError::Io { .. }))
        ));
    }

    #[test]
    fn an_index_that_was_not_signed_is_refused() {
        let (bundle, other) = (Signed::new(), Signed::with(Lineage::default()));
        // The other bundle with its own content is whole, but these keys have signed something else under its name.
        fs::copy(bundle.path().join("targets.json"), other.path().join("targets.json")).unwrap();
        fs::copy(
            bundle.folder.path().join("keys/root.json"),
            other.folder.path().join("keys/root.json"),
        )
        .unwrap();
        assert!(matches!(other.verify(), Err(BundleError::Index(_))));
        fs::remove_file(other.path().join("targets.json")).unwrap();
        assert!(matches!(
            other.verify(),
            Err(BundleError::Folder(FolderError::Unsigned(_)))
        ));
    }

    #[test]
    fn another_root_does_not_vouch_for_it() {
        let (bundle, other) = (Signed::new(), Signed::new());
        fs::copy(
            other.folder.path().join("keys/root.json"),
            bundle.folder.path().join("keys/root.json"),
        )
        .unwrap();
        assert!(matches!(bundle.verify(), Err(BundleError::Targets(_))));
        assert!(matches!(
            verify(&bundle.path(), &[], UnixTime::from_seconds(0)),
            Err(BundleError::Root { .. })
        ));
    }

    #[test]
    fn a_lineage_of_another_model_is_refused_though_it_is_signed() {
        let bundle = Signed::with(Lineage {
            onnx: Some(Digest::of(b"another")),
            ..Lineage::default()
        });
        assert!(matches!(bundle.verify(), Err(BundleError::Lineage(_))));
    }

    #[test]
    fn what_the_metadata_blocks_is_said_and_does_not_fail() {
        let bundle = Signed::new();
        let verified = bundle.verify().unwrap();
        assert_eq!((verified.blocked, verified.min_release), (None, 0));
        let path = bundle.path().join("targets.json");
        let signed = skerry_tuf::Signed::<Targets>::parse(&fs::read(&path).unwrap(), &Limits::default()).unwrap();
        let mut targets = signed.unverified().clone();
        let extension = targets.extension.get_or_insert_default();
        let blocked = skerry_tuf::Blocked {
            // By its content alone: under another name.
            sha256: verified.summary.index.to_hex(),
            reason: "it sees cats".to_owned(),
            extra: serde_json::Map::new(),
        };
        extension
            .blocked
            .insert(TargetName::new("other/9/index").unwrap(), blocked);
        extension.min_release.insert("m".to_owned(), 2);
        let key = bundle.folder.path().join("keys/targets.key");
        let key = key_file::read(&key, || panic!("not encrypted")).unwrap();
        fs::write(&path, skerry_tuf::sign_metadata(&targets, [&key]).unwrap()).unwrap();
        let verified = bundle.verify().unwrap();
        assert_eq!(
            (verified.blocked.as_deref(), verified.min_release),
            (Some("it sees cats"), 2)
        );
    }

    #[test]
    fn expired_metadata_is_said_and_does_not_fail() {
        let bundle = Signed::new();
        let root = bundle.folder.path().join("keys/root.json");
        let roots = [(root.clone(), fs::read(root).unwrap())];
        let verified = verify(&bundle.path(), &roots, UnixTime::from_seconds(1000)).unwrap();
        assert!(verified.expired);
    }
}
