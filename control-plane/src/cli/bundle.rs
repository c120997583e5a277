//! `skerry bundle`: build on this machine, sign with the offline key, publish to the control plane.

mod verify;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::{
    bundle::{Approval, Lineage, Registration, ResourceKind},
    digest::Digest,
    id::{ModelName, ModelVersion},
};
use skerry_tuf::{Blocked, TargetName, Targets, UnixTime};

use super::{
    Done, Global, Output,
    client::Client,
    keys::{self, KeysFolder, Secret, TARGETS_DAYS},
    output::{self, bytes},
};
use crate::{
    bundle::{
        build::{BuildOptions, SelfCheck, build},
        folder::BundleFolder,
        sign::sign,
        spec::Spec,
        target_name,
    },
    signing::draft::{Demand, Draft},
};

/// Commands about bundles.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "The way of a bundle:\n  skerry model register NAME model.onnx\n  skerry bundle build --spec bundle.toml --out out\n  \
                        skerry bundle sign out --keys keys\n  skerry bundle publish out\n  skerry rollout create NAME VERSION"
)]
pub enum Command {
    /// Builds a bundle from a spec: compiles its components, runs its golden vectors, cuts it into chunks.
    Build {
        /// The bundle spec (TOML).
        #[arg(long)]
        spec: PathBuf,
        /// The folder to write.
        #[arg(long)]
        out: PathBuf,
        /// The model version; without it the control plane is asked which version has this ONNX file.
        #[arg(long)]
        version: Option<ModelVersion>,
        /// Build even if the golden vectors fail here.
        #[arg(long)]
        skip_self_check: bool,
    },
    /// Signs a bundle: adds it to the targets metadata with the offline key.
    Sign {
        /// The bundle folder.
        bundle: PathBuf,
        /// The folder with your targets keys and root.json.
        #[arg(long, default_value = "keys")]
        keys: PathBuf,
        /// How the keys are opened.
        #[command(flatten)]
        secret: Secret,
        /// The current targets metadata, for a machine without a network; without it the control plane is asked.
        #[arg(long)]
        targets: Option<PathBuf>,
    },
    /// Uploads a signed bundle; only chunks that the control plane lacks travel.
    Publish {
        /// The bundle folder.
        bundle: PathBuf,
    },
    /// Proves a bundle folder without a server: content, signatures, and the lineage back to the data set.
    #[command(
        after_help = "Exit code 1 if anything is wrong: a chunk, the index, the manifest, a signature, or a lineage of another bundle.\n\
                      What is not known is shown as such and is no error; neither is metadata that has expired, which only devices\n\
                      must refuse. After a rotation, give the roots in order, the one that you trust first:\n  \
                      skerry bundle verify out --root keys/1.root.json --root keys/2.root.json\n\
                      With the training data at hand:\n  \
                      skerry bundle verify out --dataset data/"
    )]
    Verify {
        /// The bundle folder.
        bundle: PathBuf,
        /// The folder with root.json.
        #[arg(long, default_value = "keys")]
        keys: PathBuf,
        /// A root metadata file instead; several, each of which follows the one before.
        #[arg(long)]
        root: Vec<PathBuf>,
        /// The folder with the training run's inputs: must have the data set's digest.
        #[arg(long, value_name = "FOLDER")]
        dataset: Option<PathBuf>,
    },
    /// Blocks a published version: no device installs it any more, and one that runs it leaves it. Writes targets-draft.json.
    #[command(
        after_help = "The draft is signed with the keys that are in the folder; other holders add theirs with `skerry keys sign`, \
                            and `skerry keys publish` uploads it. A device that runs the version goes back to the version before \
                            it, if that one is allowed, or stops serving the model, and reports `blocked`."
    )]
    Block {
        /// The model.
        model: ModelName,
        /// Its version.
        version: ModelVersion,
        /// Why, for people: it is signed with the list.
        #[arg(long)]
        reason: String,
        /// How the targets metadata is changed.
        #[command(flatten)]
        edit: keys::EditTargets,
    },
    /// Sets the lowest version of a model that devices may be told to run. Writes targets-draft.json.
    #[command(
        after_help = "A device that runs an older version goes on; it is not told to install one. A rollout with \
                            --allow-downgrade may go below, never to a blocked version."
    )]
    MinRelease {
        /// The model.
        model: ModelName,
        /// The lowest version.
        version: ModelVersion,
        /// How the targets metadata is changed.
        #[command(flatten)]
        edit: keys::EditTargets,
    },
    /// Checks a bundle folder and shows what is in it.
    Inspect {
        /// The bundle folder.
        bundle: PathBuf,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let summary = match command {
        Command::Build {
            spec,
            out,
            version,
            skip_self_check,
        } => {
            let spec = Spec::read(&spec).map_err(anyhow::Error::new)?;
            let self_check = if skip_self_check {
                SelfCheck::Skip
            } else {
                SelfCheck::Enforce
            };
            let folder = build_bundle(&client, &spec, version, self_check, &out)?;
            json!(folder.summary)
        }
        Command::Sign {
            bundle,
            keys,
            secret,
            targets,
        } => {
            let folder = BundleFolder::open(&bundle).map_err(anyhow::Error::new)?;
            let demands = sign_bundle(&client, &folder, (&keys, &secret), targets.as_deref())?;
            if !demands.iter().all(Demand::is_met) {
                keys::report(&demands);
                output::note(&format!(
                    "the other holders sign {}: skerry keys sign FILE --keys DIR",
                    bundle.join("targets.json").display()
                ));
            }
            json!(folder.summary)
        }
        Command::Publish { bundle } => {
            let folder = BundleFolder::open(&bundle).map_err(anyhow::Error::new)?;
            publish_bundle(&client, &folder)?
        }
        Command::Verify {
            bundle,
            keys,
            root,
            dataset,
        } => {
            return verify::run(&bundle, &keys, root, dataset.as_deref(), global.output);
        }
        Command::Block {
            model,
            version,
            reason,
            edit,
        } => return keys::edit_targets(&edit, global, |targets| block(targets, &model, version, &reason)),
        Command::MinRelease { model, version, edit } => {
            return keys::edit_targets(&edit, global, |targets| {
                let extension = targets.extension.get_or_insert_default();
                extension.min_release.insert(model.to_string(), version.0);
                Ok(())
            });
        }
        Command::Inspect { bundle } => {
            let folder = BundleFolder::open(&bundle).map_err(anyhow::Error::new)?;
            if global.output == Output::Table {
                inspect(&folder);
                return Ok(ExitCode::SUCCESS);
            }
            json!({"summary": folder.summary, "manifest": folder.manifest})
        }
    };
    match global.output {
        Output::Json => output::json(&summary),
        Output::Table => {
            let size = |key: &str| bytes(summary[key].as_u64().unwrap_or(0));
            let (model, version) = (output::text(&summary, "model"), output::text(&summary, "version"));
            output::line(&format!(
                "{model} v{version}: {} ({} on the wire)",
                size("total_bytes"),
                size("wire_bytes")
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn block(targets: &mut Targets, model: &ModelName, version: ModelVersion, reason: &str) -> anyhow::Result<()> {
    let name = TargetName::new(target_name(model, version)).context("the version makes no target name")?;
    let digest = targets.find(&name).and_then(|file| file.sha256());
    let digest = digest.with_context(|| format!("{model} version {version} is not in the targets metadata"))?;
    let blocked = Blocked {
        sha256: hex::encode(digest),
        reason: reason.to_owned(),
        extra: serde_json::Map::new(),
    };
    let extension = targets.extension.get_or_insert_default();
    extension.blocked.insert(name, blocked);
    Ok(())
}

/// Builds a bundle of a registered model version.
///
/// # Errors
/// When the version cannot be found or [`build`] fails.
pub fn build_bundle(
    client: &Client,
    spec: &Spec,
    version: Option<ModelVersion>,
    self_check: SelfCheck,
    out: &Path,
) -> anyhow::Result<BundleFolder> {
    let onnx = fs::read(&spec.onnx).with_context(|| format!("cannot read {}", spec.onnx.display()))?;
    let digest = Digest::of(&onnx);
    let (version, lineage) = match version {
        Some(version) => (
            version,
            Lineage {
                onnx: Some(digest),
                ..Lineage::default()
            },
        ),
        None => registered(client, &spec.model, digest)?,
    };
    let options = BuildOptions {
        version,
        created_at_ms: created_at_ms()?,
        lineage,
        self_check,
    };
    Ok(build(spec, &options, out)?)
}

/// `SOURCE_DATE_EPOCH` if it is set, so that the same inputs give the same bytes; otherwise now.
fn created_at_ms() -> anyhow::Result<u64> {
    if let Ok(seconds) = std::env::var("SOURCE_DATE_EPOCH") {
        let seconds: u64 = seconds.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?;
        return Ok(seconds * 1000);
    }
    Ok(SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?
        .as_millis() as u64)
}

fn registered(client: &Client, model: &ModelName, digest: Digest) -> anyhow::Result<(ModelVersion, Lineage)> {
    let answer = client.get(&format!("/api/v1/models/{model}"))?;
    let wanted = digest.to_string();
    let found = answer["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|v| v["digest"] == wanted.as_str());
    let Some(version) = found else {
        bail!(
            "this ONNX file is not registered as a version of {model}: run `skerry model register {model} FILE` first"
        );
    };
    let number = version["version"]
        .as_u64()
        .context("the control plane named no version")?;
    let run: Value = match version["run_id"].as_str() {
        Some(run_id) => client.get(&format!("/api/v1/runs/{run_id}"))?,
        None => Value::Null,
    };
    let approval = version.get("approval").filter(|approval| approval.is_object());
    let digest_of = |key: &str| run[key].as_str().and_then(|text| text.parse().ok());
    let lineage = Lineage {
        run_id: run["id"].as_str().and_then(|id| id.parse().ok()),
        dataset: digest_of("dataset"),
        code: digest_of("code"),
        onnx: Some(digest),
        registered: Some(Registration {
            model: model.clone(),
            version: ModelVersion(number),
            by: output::text(version, "registered_by"),
            at_ms: version["created_at_ms"].as_u64().unwrap_or(0),
        }),
        approved: approval.map(|approval| Approval {
            by: output::text(approval, "by"),
            at_ms: approval["at_ms"].as_u64().unwrap_or(0),
        }),
    };
    if lineage.approved.is_none() {
        output::note(&format!(
            "note: {model} v{number} is not approved, and the bundle says so (`skerry model approve {model} {number}` first)"
        ));
    }
    Ok((ModelVersion(number), lineage))
}

/// Signs a bundle with the targets keys in a folder, and leaves the metadata, which may lack further signatures, in the
/// bundle's folder. Returns what the metadata needs.
///
/// # Errors
/// When the keys or the current metadata cannot be read or trusted.
pub fn sign_bundle(
    client: &Client,
    folder: &BundleFolder,
    (keys, secret): (&Path, &Secret),
    targets: Option<&Path>,
) -> anyhow::Result<Vec<Demand>> {
    let keys = KeysFolder::new(keys);
    let root = keys.root_bytes()?;
    let trusted = keys.root()?;
    let current = match targets {
        Some(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => client.get_bytes("/api/v1/tuf/targets.json")?,
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let expires = UnixTime::from_seconds(now.as_secs() as i64).plus_days(TARGETS_DAYS);
    let signed = sign(folder, &root, &current, &keys.private_keys(secret)?, expires);
    let signed =
        signed.context("cannot sign the bundle; if the root is not the newest one, `skerry keys update` fetches it")?;
    folder.store_signed_targets(&signed)?;
    Ok(Draft::parse(&signed)?.demands(&trusted))
}

/// Uploads what the control plane lacks of a signed bundle, and publishes it.
///
/// # Errors
/// When the bundle is not signed or the control plane refuses it; nothing is published then.
pub fn publish_bundle(client: &Client, folder: &BundleFolder) -> anyhow::Result<Value> {
    let targets = folder.signed_targets()?;
    let bar = output::progress_bytes(folder.summary.wire_bytes, "uploading");
    let index = folder.index_bytes();
    client.upload(&Digest::of(&index), &index)?;
    for chunk in folder.index.chunks() {
        client.upload(&chunk.wire, &folder.chunk(&chunk.wire)?)?;
        bar.inc(u64::from(chunk.wire_len));
    }
    bar.finish_and_clear();
    let body = json!({
        "model": folder.summary.model,
        "version": folder.summary.version,
        "targets": STANDARD.encode(targets),
    });
    Ok(client.post("/api/v1/bundles", &body)?)
}

fn inspect(folder: &BundleFolder) {
    let summary = &folder.summary;
    output::line(&format!(
        "{} v{}  index {}",
        summary.model, summary.version, summary.index
    ));
    let (total, wire) = (bytes(summary.total_bytes), bytes(summary.wire_bytes));
    output::line(&format!(
        "{total} in {} chunks, {wire} on the wire",
        folder.index.chunks().len()
    ));
    output::line(if folder.signed_targets().is_ok() {
        "signed"
    } else {
        "not signed"
    });
    output::line("");
    let row = |resource: &skerry_shared::bundle::Resource| {
        let kind = match &resource.kind {
            ResourceKind::OnnxModel => "ONNX model".to_owned(),
            ResourceKind::Component => "component".to_owned(),
            ResourceKind::CompiledComponent { platform, wasmtime, .. } => format!("{platform}, wasmtime {wasmtime}"),
            ResourceKind::GoldenVectors => "golden vectors".to_owned(),
            ResourceKind::Document => "document".to_owned(),
        };
        [resource.name.to_string(), bytes(resource.size_bytes), kind]
    };
    output::table(["resource", "size", "kind"], folder.manifest.resources.iter().map(row));
}
