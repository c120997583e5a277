//! The in-toto statement inside a model signature: which files, with which digests.
//!
//! Pure. Knows nothing of keys: a statement that was read here may be anybody's. Invariant: names of files are canonical
//! relative paths, each stands once, and the root digest is that of the list.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use skerry_shared::digest::{Digest, Hasher};

use super::{OmsError, short};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The name of the only file, when a file was signed and not a folder.
const ONLY_FILE: &str = ".";
/// The longest name of a file: what a Linux path may have.
const NAME_MAX: usize = 4096;

/// What was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What the signer called the model; says nothing about the name here.
    pub subject: String,
    /// The files, in the order of the signature.
    pub resources: Vec<Resource>,
    /// Paths in the folder that the signer left out on purpose, with all that is below them.
    pub ignore_paths: Vec<String>,
}

/// A signed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Relative to the model's folder, with `/`.
    pub name: String,
    /// Its content.
    pub digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<WireResource>,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct WireResource {
    name: String,
    algorithm: String,
    digest: String,
}

impl Statement {
    /// Makes the statement about files; they are put in order.
    ///
    /// # Errors
    /// [`OmsError::Malformed`] when a name breaks the rules or stands twice.
    pub fn new(subject: &str, mut resources: Vec<Resource>, ignore_paths: Vec<String>) -> Result<Statement, OmsError> {
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        let statement = Statement {
            subject: subject.to_owned(),
            resources,
            ignore_paths,
        };
        statement.check()?;
        Ok(statement)
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// [`OmsError`]: not a statement about a model's files by SHA-256, or one that breaks the rules.
    pub fn parse(payload: &[u8]) -> Result<Statement, OmsError> {
        let wire: Wire = serde_json::from_slice(payload).map_err(|source| OmsError::Parse {
            part: "statement",
            source,
        })?;
        expect("statement type", &wire.kind, STATEMENT_TYPE)?;
        expect("predicate type", &wire.predicate_type, PREDICATE_TYPE)?;
        let serialization = wire.predicate.serialization;
        expect("serialization method", &serialization.method, "files")?;
        expect("hash", &serialization.hash_type, "sha256")?;
        let [subject] = wire.subject.as_slice() else {
            let text = format!("has {} subjects, it must have one", wire.subject.len());
            return Err(OmsError::Malformed(text));
        };
        let mut resources = Vec::with_capacity(wire.predicate.resources.len());
        for resource in wire.predicate.resources {
            expect("hash of a file", &resource.algorithm, "sha256")?;
            let digest = digest(&resource.digest)?;
            let name = resource.name;
            resources.push(Resource { name, digest });
        }
        let statement = Statement {
            subject: subject.name.clone(),
            resources,
            ignore_paths: serialization.ignore_paths,
        };
        statement.check()?;
        if statement.root() != digest(&subject.digest.sha256)? {
            return Err(OmsError::Malformed(
                "has a root digest that is not that of its files".to_owned(),
            ));
        }
        Ok(statement)
    }

    /// Encodes the statement; [`Statement::parse`] reads it back.
    pub fn to_json(&self) -> Vec<u8> {
        let resource = |resource: &Resource| WireResource {
            name: resource.name.clone(),
            algorithm: "sha256".to_owned(),
            digest: resource.digest.to_hex(),
        };
        let wire = Wire {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject {
                name: self.subject.clone(),
                digest: SubjectDigest {
                    sha256: self.root().to_hex(),
                },
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: false,
                    ignore_paths: self.ignore_paths.clone(),
                },
                resources: self.resources.iter().map(resource).collect(),
            },
        };
        serde_json::to_vec(&wire).expect("strings and lists always encode")
    }

    /// The digest of the model as a whole: over the digests of its files, one after the other.
    pub fn root(&self) -> Digest {
        let mut hasher = Hasher::new();
        for resource in &self.resources {
            hasher.update(resource.digest.as_bytes());
        }
        hasher.finish()
    }

    /// The digest of the only file, when a file was signed and not a folder.
    pub fn only_file(&self) -> Option<Digest> {
        match self.resources.as_slice() {
            [resource] if resource.name == ONLY_FILE => Some(resource.digest),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), OmsError> {
        if self.resources.is_empty() {
            return Err(OmsError::Malformed("covers no file".to_owned()));
        }
        if self.only_file().is_none() {
            for resource in &self.resources {
                check_name(&resource.name)?;
            }
        }
        let names: Vec<&str> = self.resources.iter().map(|resource| resource.name.as_str()).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(**name)) {
            let text = format!("covers `{}` twice", short(twice));
            return Err(OmsError::Malformed(text));
        }
        // By code point, as the specification says; or component by component, as `model-signing` does. They differ where a
        // name has a character below `/` beside a folder of the same beginning.
        let sorted = names.is_sorted() || names.is_sorted_by(|a, b| a.split('/').le(b.split('/')));
        match sorted {
            true => Ok(()),
            false => Err(OmsError::Malformed("has files that are not in order".to_owned())),
        }
    }
}

/// A relative path, with `/`, in its only spelling.
fn check_name(name: &str) -> Result<(), OmsError> {
    let spelled = name
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    // A backslash is a separator elsewhere, and no model needs one.
    let plain = !name.chars().any(|c| c.is_control() || c == '\\');
    if spelled && plain && name.len() <= NAME_MAX {
        return Ok(());
    }
    let text = format!("covers `{}`, which is no relative path in its plain form", short(name));
    Err(OmsError::Malformed(text))
}

fn digest(hex: &str) -> Result<Digest, OmsError> {
    Digest::from_hex(hex).map_err(|error| OmsError::Malformed(format!("has a digest that is none: {error}")))
}

pub(super) fn expect(what: &'static str, found: &str, expected: &'static str) -> Result<(), OmsError> {
    if found == expected {
        return Ok(());
    }
    let found = short(found);
    Err(OmsError::Unsupported { what, found, expected })
}
