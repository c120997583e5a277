//! What the page of the models shows.

use skerry_shared::{desired::Slot, id::ModelVersion};

use super::Moment;
use crate::{
    cli::output::bytes,
    devices::Device,
    publish::PublishedBundle,
    registry::{ModelVersionInfo, RegisteredModel},
};

/// A registered model.
pub(in crate::web) struct ModelView {
    pub(in crate::web) name: String,
    pub(in crate::web) description: String,
    pub(in crate::web) versions: Vec<VersionRow>,
}

/// A version of a model.
pub(in crate::web) struct VersionRow {
    pub(in crate::web) version: ModelVersion,
    pub(in crate::web) aliases: Vec<String>,
    pub(in crate::web) description: String,
    pub(in crate::web) size: String,
    pub(in crate::web) registered: Moment,
    pub(in crate::web) run_id: Option<String>,
    pub(in crate::web) approved_by: Option<String>,
    pub(in crate::web) signature: Option<SignatureCell>,
    pub(in crate::web) bundle: Option<BundleCell>,
    pub(in crate::web) devices: usize,
}

/// The signature that a version came with.
pub(in crate::web) struct SignatureCell {
    pub(in crate::web) key: String,
    pub(in crate::web) subject: String,
}

/// The published bundle of a version.
pub(in crate::web) struct BundleCell {
    pub(in crate::web) size: String,
    pub(in crate::web) wire: String,
    pub(in crate::web) published: Moment,
}

/// The page of the models, the newest version of each first.
pub(in crate::web) fn model_views(
    models: Vec<RegisteredModel>,
    bundles: &[PublishedBundle],
    devices: &[Device],
    now_ms: u64,
) -> Vec<ModelView> {
    let view = |model: RegisteredModel| ModelView {
        name: model.name.to_string(),
        description: model.description,
        versions: model
            .versions
            .into_iter()
            .rev()
            .map(|version| VersionRow::new(version, bundles, devices, now_ms))
            .collect(),
    };
    models.into_iter().map(view).collect()
}

impl VersionRow {
    fn new(info: ModelVersionInfo, bundles: &[PublishedBundle], devices: &[Device], now_ms: u64) -> VersionRow {
        let bundle = bundles
            .iter()
            .find(|bundle| bundle.model == info.model && bundle.version == info.version);
        let runs = |device: &&Device| {
            let mut installed = device.reported.iter().flat_map(|reported| &reported.bundles);
            installed.any(|b| b.slot == Slot::Current && b.model == info.model && b.version == info.version)
        };
        VersionRow {
            devices: devices.iter().filter(runs).count(),
            version: info.version,
            aliases: info.aliases,
            description: info.description,
            size: bytes(info.size_bytes),
            registered: Moment::new(info.created_at_ms, now_ms),
            run_id: info.run_id.map(String::from),
            approved_by: info.approval.map(|approval| approval.by),
            signature: info.signature.map(|signature| SignatureCell {
                key: signature.key.chars().take(16).collect(),
                subject: signature.subject,
            }),
            bundle: bundle.map(|bundle| BundleCell {
                size: bytes(bundle.total_bytes),
                wire: bytes(bundle.wire_bytes),
                published: Moment::new(bundle.published_at_ms, now_ms),
            }),
        }
    }
}
