//! Signs a bundle: its chunk index becomes a target of the next `targets` metadata.

use serde_json::json;
use skerry_tuf::{
    Limits, Role, Signed, SigningKey, TargetFile, TargetName, TargetNameError, Targets, TrustedSet, UnixTime,
    sign_metadata,
};

use super::folder::BundleFolder;

/// Why a bundle could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The trusted root does not verify itself.
    #[error("the root metadata is unusable")]
    Root(#[source] skerry_tuf::Error),
    /// The targets metadata to add to is not signed by the root's targets keys.
    #[error("the current targets metadata cannot be trusted")]
    Current(#[source] skerry_tuf::Error),
    /// The bundle's model name makes no target name.
    #[error("the bundle has no valid target name")]
    TargetName(#[source] TargetNameError),
    /// This target exists with other content: versions are immutable.
    #[error("`{0}` is already signed with other content; register a new model version")]
    Changed(String),
    /// None of the keys is one that the root names for targets.
    #[error("none of the keys is a targets key of the root")]
    NoKey,
    /// The new metadata cannot be encoded or is too large.
    #[error("cannot sign the new targets metadata")]
    Sign(#[source] skerry_tuf::Error),
}

/// Adds the bundle to `current_targets` and signs the next version with those of `keys` that the root names. They may be
/// fewer than the threshold: other holders sign after that. A bundle that is there already, with the
/// same content, is signed again under the next version.
///
/// # Errors
/// [`SignError`]; nothing has changed.
pub fn sign(
    bundle: &BundleFolder,
    root: &[u8],
    current_targets: &[u8],
    keys: &[SigningKey],
    expires: UnixTime,
) -> Result<Vec<u8>, SignError> {
    let trusted = TrustedSet::new(root).map_err(SignError::Root)?;
    let current = Signed::<Targets>::parse(current_targets, &Limits::default())
        .and_then(|signed| signed.verify(&trusted.root().keys_of(Role::Targets), trusted.root().version))
        .map_err(SignError::Current)?;
    let mut targets = current.metadata().clone();
    let name = TargetName::new(bundle.summary.target.clone()).map_err(SignError::TargetName)?;
    let index = bundle.index_bytes();
    let mut file = TargetFile::describe(&index);
    file.custom = json!({"model": bundle.summary.model, "version": bundle.summary.version})
        .as_object()
        .cloned();
    if let Some(present) = targets.find(&name)
        && present.sha256() != file.sha256()
    {
        return Err(SignError::Changed(bundle.summary.target.clone()));
    }
    targets.add_target(name, file);
    targets.version += 1;
    targets.expires = expires;
    let named = trusted.root().keys_of(Role::Targets);
    let holders = keys.iter().filter(|key| named.keys.contains_key(&key.id()));
    let mut holders = holders.peekable();
    if holders.peek().is_none() {
        return Err(SignError::NoKey);
    }
    sign_metadata(&targets, holders).map_err(SignError::Sign)
}
