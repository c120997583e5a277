//! A bundle's lineage as a chain of links, from the bundle back to the data set, and what can be checked of it without
//! asking anybody.
//!
//! The signature over the bundle covers the lineage, so it is the publisher's word. Invariant: a lineage that [`check`]
//! accepts speaks of the very bundle that it lies in.

use serde::Serialize;

use crate::bundle::{Manifest, ResourceKind};

/// One link of the chain. A link that is not known says so by having no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// What it is, for example `data set`.
    pub what: &'static str,
    /// Its name or digest.
    pub value: Option<String>,
    /// Who answers for it, if somebody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, in UTC milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
}

/// A lineage that speaks of another bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// The registered ONNX file is not in the bundle.
    #[error("the lineage is of another bundle: the ONNX file {0} that it names is not in this one")]
    Onnx(String),
    /// The registered version is not the bundle's.
    #[error("the lineage is of another bundle: it names {0}")]
    Version(String),
}

/// The chain of a bundle, the bundle's end first: model version, approval, ONNX file, training run, code, data set.
pub fn links(manifest: &Manifest) -> Vec<Link> {
    let lineage = &manifest.lineage;
    let plain = |what, value: Option<String>| Link {
        what,
        value,
        by: None,
        at_ms: None,
    };
    let registered = lineage.registered.as_ref();
    let approved = lineage.approved.as_ref();
    vec![
        Link {
            what: "model version",
            value: registered.map(|registered| format!("{} v{}", registered.model, registered.version)),
            by: registered.map(|registered| registered.by.clone()),
            at_ms: registered.map(|registered| registered.at_ms),
        },
        Link {
            what: "approval",
            value: approved.map(|_| "approved".to_owned()),
            by: approved.map(|approved| approved.by.clone()),
            at_ms: approved.map(|approved| approved.at_ms),
        },
        plain("ONNX file", lineage.onnx.map(|digest| digest.to_string())),
        plain("training run", lineage.run_id.as_ref().map(|id| id.to_string())),
        plain("code", lineage.code.map(|digest| digest.to_string())),
        plain("data set", lineage.dataset.map(|digest| digest.to_string())),
    ]
}

/// Checks that the lineage speaks of this bundle: its ONNX file and its version are the bundle's.
///
/// # Errors
/// [`LineageError`].
pub fn check(manifest: &Manifest) -> Result<(), LineageError> {
    let lineage = &manifest.lineage;
    if let Some(onnx) = lineage.onnx {
        let mut models = manifest.resources.iter().filter(|r| r.kind == ResourceKind::OnnxModel);
        if !models.any(|resource| resource.digest == onnx) {
            return Err(LineageError::Onnx(onnx.to_string()));
        }
    }
    if let Some(registered) = &lineage.registered
        && (&registered.model, registered.version) != (&manifest.model, manifest.version)
    {
        let named = format!("{} v{}", registered.model, registered.version);
        return Err(LineageError::Version(named));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        bundle::{Approval, Lineage, Pipeline, Registration, Resource},
        digest::Digest,
        id::ModelVersion,
        schema::SchemaVersion,
    };

    fn manifest() -> Manifest {
        let onnx = Digest::of(b"onnx");
        Manifest {
            schema: SchemaVersion::CURRENT,
            model: "m".parse().unwrap(),
            version: ModelVersion(2),
            created_at_ms: 0,
            resources: vec![Resource {
                name: "model.onnx".parse().unwrap(),
                digest: onnx,
                size_bytes: 4,
                kind: ResourceKind::OnnxModel,
            }],
            pipeline: Pipeline {
                inputs: vec![],
                outputs: vec![],
                stages: vec![],
                edges: vec![],
            },
            golden: None,
            lineage: Lineage {
                onnx: Some(onnx),
                registered: Some(Registration {
                    model: "m".parse().unwrap(),
                    version: ModelVersion(2),
                    by: "ada".to_owned(),
                    at_ms: 1,
                }),
                approved: Some(Approval {
                    by: "bob".to_owned(),
                    at_ms: 2,
                }),
                ..Lineage::default()
            },
        }
    }

    #[test]
    fn the_chain_goes_back_to_the_data_set_and_names_its_gaps() {
        let links = links(&manifest());
        let known: Vec<_> = links.iter().map(|link| (link.what, link.value.is_some())).collect();
        let expected = [
            ("model version", true),
            ("approval", true),
            ("ONNX file", true),
            ("training run", false),
            ("code", false),
            ("data set", false),
        ];
        assert_eq!(known, expected);
        assert_eq!((links[1].by.as_deref(), links[1].at_ms), (Some("bob"), Some(2)));
    }

    #[test]
    fn a_lineage_of_another_bundle_is_refused() {
        check(&manifest()).unwrap();
        let mut other = manifest();
        other.lineage.onnx = Some(Digest::of(b"other"));
        assert!(matches!(check(&other), Err(LineageError::Onnx(_))));
        let mut other = manifest();
        other.version = ModelVersion(3);
        assert_eq!(check(&other), Err(LineageError::Version("m v2".to_owned())));
    }

    #[test]
    fn an_unknown_lineage_is_no_error() {
        let mut unknown = manifest();
        unknown.lineage = Lineage::default();
        check(&unknown).unwrap();
    }
}
