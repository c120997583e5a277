//! The model registry, in MLflow's terms: registered models, immutable integer versions, aliases, tags.
//!
//! Invariant: a version's ONNX file never changes, and tract could load it on the day it was registered.

pub mod oms;
mod store;

use std::collections::BTreeMap;

use bytes::Bytes;
use rusqlite::Connection;
use serde::Serialize;
use skerry_inference::{ModelError, check_model};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion, RunId},
    oip::TensorMetadata,
};
use utoipa::ToSchema;

use self::oms::{OmsError, Verified};
use crate::{
    access::person_of,
    audit::{self, By, Fact},
    blob::{BlobError, BlobStore},
    db::{Db, DbError},
    openapi,
};

/// A registered model with its versions.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RegisteredModel {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ModelName,
    /// One sentence for people.
    pub description: String,
    /// The user's tags.
    pub tags: BTreeMap<String, String>,
    /// Movable names of versions.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub aliases: BTreeMap<String, ModelVersion>,
    /// All versions, the oldest first.
    pub versions: Vec<ModelVersionInfo>,
    /// UTC milliseconds.
    pub created_at_ms: u64,
}

/// A version of a registered model.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ModelVersion)]
pub struct ModelVersionInfo {
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Counted from 1.
    #[schema(value_type = u64, minimum = 1)]
    pub version: ModelVersion,
    /// Its ONNX file: `sha256:` and 64 hex digits.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The file's length.
    pub size_bytes: u64,
    /// The run that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub run_id: Option<RunId>,
    /// One sentence for people.
    pub description: String,
    /// The user's tags.
    pub tags: BTreeMap<String, String>,
    /// The aliases that point at it.
    pub aliases: Vec<String>,
    /// What the ONNX file takes.
    #[schema(value_type = Vec<openapi::TensorMetadata>)]
    pub inputs: Vec<TensorMetadata>,
    /// What it gives.
    #[schema(value_type = Vec<openapi::TensorMetadata>)]
    pub outputs: Vec<TensorMetadata>,
    /// UTC milliseconds.
    pub created_at_ms: u64,
    /// Who registered it: a user, a token, or whoever submitted the run. Empty if that is not known.
    pub registered_by: String,
    /// Who has approved it; absent as long as nobody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub approval: Option<Approval>,
    /// By whom else its file is signed (OpenSSF Model Signing); absent if it came without a signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub signature: Option<ModelSignature>,
}

/// A signature that came in with a model, and was checked then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelSignature {
    /// The signer: the SHA-256 of the public key in PEM, 64 hex digits.
    pub key: String,
    /// What the signer called the model.
    pub subject: String,
    /// The Sigstore bundle, among the blobs: `sha256:` and 64 hex digits.
    #[schema(value_type = String)]
    pub bundle: Digest,
    /// UTC milliseconds.
    pub verified_at_ms: u64,
}

/// Somebody's word that a version may go to devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Approval {
    /// Who gave it.
    pub by: String,
    /// UTC milliseconds.
    pub at_ms: u64,
}

/// Who may approve a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approver {
    /// Anybody whose role allows it.
    Anybody,
    /// Not whoever registered it: four eyes have seen it then.
    SomebodyElse,
}

/// Why a registry call failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such model.
    #[error("there is no registered model `{0}`")]
    NoModel(ModelName),
    /// There is no such version.
    #[error("model `{model}` has no version {version}")]
    NoVersion {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
    },
    /// There is no such alias.
    #[error("model `{model}` has no alias `{alias}`")]
    NoAlias {
        /// The model.
        model: ModelName,
        /// The alias.
        alias: String,
    },
    /// The model exists.
    #[error("model `{0}` is registered already")]
    Exists(ModelName),
    /// An alias or tag key that is empty or too long.
    #[error("`{0}` is no alias or tag key: 1 to 128 characters without control characters")]
    BadKey(String),
    /// The version is approved already.
    #[error("version {version} of model `{model}` was approved by {by} already")]
    Approved {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
        /// Who approved it.
        by: String,
    },
    /// Whoever registered a version may not approve it.
    #[error("{0} registered this version: somebody else must approve it")]
    OwnVersion(String),
    /// A device could not run the ONNX file.
    #[error("the ONNX file is refused")]
    Model(#[from] ModelError),
    /// There is no model signature where one is needed, or one that does not convince.
    #[error(transparent)]
    Oms(#[from] OmsError),
    /// The version came without a signature.
    #[error("version {version} of model `{model}` was registered without an OpenSSF Model Signing bundle")]
    NoSignature {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
    },
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A version to register.
#[derive(Clone, Debug)]
pub struct NewVersion {
    /// The model; it is made if it is new.
    pub model: ModelName,
    /// The ONNX file.
    pub onnx: Bytes,
    /// The run that made it.
    pub run_id: Option<RunId>,
    /// One sentence for people.
    pub description: String,
    /// The signature that came with it, as it came and as it was found good.
    pub signature: Option<(Bytes, Verified)>,
}

/// Whether a call made something or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is new.
    New,
    /// The same file was registered before.
    Existing,
}

/// Registers an ONNX file as the next version of a model. The same file again gives the version that it has; a signature that
/// comes with it takes the place of an earlier one.
///
/// # Errors
/// [`RegistryError`]; nothing is registered then.
pub async fn register_version(
    db: &Db,
    blobs: &BlobStore,
    new: NewVersion,
    by: By,
) -> Result<(Registered, ModelVersionInfo), RegistryError> {
    let onnx = new.onnx.clone();
    let checked = tokio::task::spawn_blocking(move || (Digest::of(&onnx), check_model(&onnx)));
    let (digest, checked) = checked
        .await
        .map_err(|_| ModelError::Load("the check panicked".to_owned()))?;
    let checked = checked?;
    let size_bytes = new.onnx.len() as u64;
    let signature = match new.signature {
        Some((_, verified)) if !verified.covers(&digest) => return Err(OmsError::NotCovered(digest).into()),
        Some((bytes, verified)) => {
            let bundle = Digest::of(&bytes);
            blobs.put(bundle, bytes).await?;
            Some(ModelSignature {
                key: verified.fingerprint().to_owned(),
                subject: verified.statement().subject.clone(),
                bundle,
                verified_at_ms: by.at_ms,
            })
        }
        None => None,
    };
    blobs.put(digest, new.onnx).await?;
    db.write(move |conn| {
        if let Some(mut existing) = store::version_by_digest(conn, &new.model, &digest)? {
            let known = existing.signature.as_ref().map(|known| known.bundle);
            if let Some(signature) = signature.filter(|signature| known != Some(signature.bundle)) {
                add_signature(conn, &existing, &signature, &by)?;
                existing.signature = Some(signature);
            }
            return Ok((Registered::Existing, existing));
        }
        if store::model(conn, &new.model)?.is_none() {
            add_model(conn, &new.model, "", &BTreeMap::new(), &by)?;
        }
        let info = ModelVersionInfo {
            version: store::next_version(conn, &new.model)?,
            model: new.model,
            digest,
            size_bytes,
            run_id: new.run_id,
            description: new.description,
            tags: BTreeMap::new(),
            aliases: Vec::new(),
            inputs: checked.inputs,
            outputs: checked.outputs,
            created_at_ms: by.at_ms,
            registered_by: by.actor.clone(),
            approval: None,
            signature,
        };
        store::insert_version(conn, &info)?;
        let mut fact =
            Fact::new("model.register", format!("model/{}/{}", info.model, info.version)).with("onnx", info.digest);
        if let Some(run_id) = &info.run_id {
            fact = fact.with("run", run_id);
        }
        audit::append(conn, &by, fact)?;
        if let Some(signature) = &info.signature {
            add_signature(conn, &info, signature, &by)?;
        }
        Ok((Registered::New, info))
    })
    .await
}

fn add_signature(
    conn: &Connection,
    info: &ModelVersionInfo,
    signature: &ModelSignature,
    by: &By,
) -> Result<(), DbError> {
    store::set_signature(conn, &info.model, info.version, signature)?;
    let fact = Fact::new("model.signature", format!("model/{}/{}", info.model, info.version))
        .with("onnx", info.digest)
        .with("key", &signature.key)
        .with("bundle", signature.bundle);
    audit::append(conn, by, fact)
}

/// The signature that came with a version, as it came.
///
/// # Errors
/// [`RegistryError::NoVersion`], [`RegistryError::NoSignature`], or those of database and blobs.
pub async fn signature_bundle(
    db: &Db,
    blobs: &BlobStore,
    model: &ModelName,
    version: ModelVersion,
) -> Result<Bytes, RegistryError> {
    let info = get_version(db, model, version).await?;
    let model = info.model;
    let signature = info.signature.ok_or(RegistryError::NoSignature { model, version })?;
    Ok(blobs.get(signature.bundle).await?)
}

/// Registers a model without versions.
///
/// # Errors
/// [`RegistryError::Exists`], or the database's.
pub async fn create_model(
    db: &Db,
    name: ModelName,
    description: String,
    tags: BTreeMap<String, String>,
    by: By,
) -> Result<(), RegistryError> {
    db.write(move |conn| match store::model(conn, &name)? {
        Some(_) => Err(RegistryError::Exists(name)),
        None => Ok(add_model(conn, &name, &description, &tags, &by)?),
    })
    .await
}

fn add_model(
    conn: &Connection,
    name: &ModelName,
    description: &str,
    tags: &BTreeMap<String, String>,
    by: &By,
) -> Result<(), DbError> {
    store::insert_model(conn, name, description, tags, by.at_ms)?;
    let fact = Fact::new("model.create", format!("model/{name}")).with("description", description);
    audit::append(conn, by, fact)
}

/// All models with their versions.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db) -> Result<Vec<RegisteredModel>, DbError> {
    db.read(store::models).await
}

/// One model with its versions.
///
/// # Errors
/// [`RegistryError::NoModel`], or the database's.
pub async fn get(db: &Db, name: &ModelName) -> Result<RegisteredModel, RegistryError> {
    let name = name.clone();
    db.read(move |conn| store::model(conn, &name)?.ok_or(RegistryError::NoModel(name)))
        .await
}

/// One version.
///
/// # Errors
/// [`RegistryError::NoVersion`], or the database's.
pub async fn get_version(db: &Db, model: &ModelName, version: ModelVersion) -> Result<ModelVersionInfo, RegistryError> {
    let model = model.clone();
    db.read(move |conn| store::version(conn, &model, version)?.ok_or(RegistryError::NoVersion { model, version }))
        .await
}

/// Approves a version: from now on its bundles carry who did, and when.
///
/// # Errors
/// [`RegistryError::NoVersion`], [`RegistryError::Approved`], [`RegistryError::OwnVersion`], or the database's.
pub async fn approve(
    db: &Db,
    model: &ModelName,
    version: ModelVersion,
    approver: Approver,
    by: By,
) -> Result<ModelVersionInfo, RegistryError> {
    let model = model.clone();
    db.write(move |conn| {
        let Some(mut info) = store::version(conn, &model, version)? else {
            return Err(RegistryError::NoVersion { model, version });
        };
        if let Some(Approval { by, .. }) = info.approval {
            return Err(RegistryError::Approved { model, version, by });
        }
        if approver == Approver::SomebodyElse && person_of(&info.registered_by) == person_of(&by.actor) {
            return Err(RegistryError::OwnVersion(by.actor));
        }
        let approval = Approval {
            by: by.actor.clone(),
            at_ms: by.at_ms,
        };
        store::set_approval(conn, &model, version, &approval)?;
        let fact = Fact::new("model.approve", format!("model/{model}/{version}"))
            .with("onnx", info.digest)
            .with("registered_by", &info.registered_by);
        audit::append(conn, &by, fact)?;
        info.approval = Some(approval);
        Ok(info)
    })
    .await
}

/// Points an alias at a version.
///
/// # Errors
/// [`RegistryError::NoVersion`], [`RegistryError::BadKey`], or the database's.
pub async fn set_alias(
    db: &Db,
    model: &ModelName,
    alias: String,
    version: ModelVersion,
    by: By,
) -> Result<(), RegistryError> {
    check_key(&alias)?;
    let model = model.clone();
    db.write(move |conn| {
        let known = store::model(conn, &model)?;
        let known = known.filter(|known| known.versions.iter().any(|info| info.version == version));
        let Some(known) = known else {
            return Err(RegistryError::NoVersion { model, version });
        };
        store::set_alias(conn, &model, &alias, version)?;
        let mut fact = Fact::new("model.alias", format!("model/{model}/{version}")).with("alias", &alias);
        if let Some(before) = known.aliases.get(&alias) {
            fact = fact.with("before", before);
        }
        Ok(audit::append(conn, &by, fact)?)
    })
    .await
}

/// Removes an alias.
///
/// # Errors
/// [`RegistryError::NoAlias`], or the database's.
pub async fn remove_alias(db: &Db, model: &ModelName, alias: String, by: By) -> Result<(), RegistryError> {
    let model = model.clone();
    db.write(move |conn| match store::remove_alias(conn, &model, &alias)? {
        true => {
            let fact = Fact::new("model.alias_remove", format!("model/{model}")).with("alias", &alias);
            Ok(audit::append(conn, &by, fact)?)
        }
        false => Err(RegistryError::NoAlias { model, alias }),
    })
    .await
}

/// Sets a tag of a version.
///
/// # Errors
/// [`RegistryError::NoVersion`], [`RegistryError::BadKey`], or the database's.
pub async fn set_tag(
    db: &Db,
    model: &ModelName,
    version: ModelVersion,
    (key, value): (String, String),
    by: By,
) -> Result<(), RegistryError> {
    check_key(&key)?;
    let model = model.clone();
    db.write(move |conn| {
        let info = store::version(conn, &model, version)?;
        let mut tags = info
            .ok_or_else(|| RegistryError::NoVersion {
                model: model.clone(),
                version,
            })?
            .tags;
        let mut fact = Fact::new("model.tag", format!("model/{model}/{version}"))
            .with("key", &key)
            .with("after", &value);
        if let Some(before) = tags.insert(key, value) {
            fact = fact.with("before", before);
        }
        store::set_tags(conn, &model, version, &tags)?;
        Ok(audit::append(conn, &by, fact)?)
    })
    .await
}

fn check_key(key: &str) -> Result<(), RegistryError> {
    if (1..=128).contains(&key.len()) && !key.chars().any(char::is_control) {
        return Ok(());
    }
    Err(RegistryError::BadKey(key.chars().take(80).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{app::CORE_MIGRATIONS, db::Durability};

    async fn registered_by_ada() -> (tempfile::TempDir, Db, ModelName) {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("core.db"), Durability::Normal, CORE_MIGRATIONS).unwrap();
        let blobs = BlobStore::open_folder(&folder.path().join("blobs")).unwrap();
        let path = "../firmware-examples/activity-recognition/models/v1/model.onnx";
        let onnx = std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let model: ModelName = "m".parse().unwrap();
        let new = NewVersion {
            model: model.clone(),
            onnx: onnx.into(),
            run_id: None,
            description: String::new(),
            signature: None,
        };
        register_version(&db, &blobs, new, By::new("ada", 1)).await.unwrap();
        (folder, db, model)
    }

    async fn approve_as(db: &Db, model: &ModelName, who: &str) -> Result<ModelVersionInfo, RegistryError> {
        let by = By::new(who, 2);
        approve(db, model, ModelVersion(1), Approver::SomebodyElse, by).await
    }

    #[tokio::test]
    async fn whoever_registered_a_version_does_not_approve_it_where_four_eyes_are_asked_for() {
        let (_folder, db, model) = registered_by_ada().await;
        let refused = approve_as(&db, &model, "ada").await;
        assert!(matches!(refused, Err(RegistryError::OwnVersion(_))), "{refused:?}");
        assert_eq!(get_version(&db, &model, ModelVersion(1)).await.unwrap().approval, None);
        approve_as(&db, &model, "bob").await.unwrap();
        let approval = get_version(&db, &model, ModelVersion(1)).await.unwrap().approval;
        assert_eq!(approval.map(|a| (a.by, a.at_ms)), Some(("bob".to_owned(), 2)));
    }

    #[tokio::test]
    async fn an_approval_stays_as_it_was_given() {
        let (_folder, db, model) = registered_by_ada().await;
        approve_as(&db, &model, "bob").await.unwrap();
        let again = approve_as(&db, &model, "eve").await;
        assert!(matches!(again, Err(RegistryError::Approved { by, .. }) if by == "bob"));
    }

    #[tokio::test]
    async fn where_it_is_allowed_one_person_does_both() {
        let (_folder, db, model) = registered_by_ada().await;
        let by = By::new("ada", 2);
        approve(&db, &model, ModelVersion(1), Approver::Anybody, by)
            .await
            .unwrap();
    }
}
