//! `skerry model`: registered models and their versions.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion};

use super::{
    Done, Failure, Global, Output,
    client::{encode, list},
    oms::{self, ExportArgs, SignatureArgs},
    output::{self, ago, bytes, pairs, text},
};

/// Commands about models.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Registers an ONNX file as the next version of a model.
    #[command(
        after_help = "Examples:\n  skerry model register activity-recognition model.onnx --description 'all features'\n  \
                      skerry model register classifier theirs/model.onnx --oms theirs/model.sig --oms-key their-key.pem\n\n\
                      --oms takes a signature of OpenSSF Model Signing (`model_signing sign key`). Every signed file is checked here, then\n\
                      the control plane checks the signature again with the keys in `[registry] oms_keys` of its configuration."
    )]
    Register {
        /// The model; it is made if it is new.
        model: ModelName,
        /// The ONNX file.
        onnx: PathBuf,
        /// One sentence for people.
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        signature: SignatureArgs,
    },
    /// Writes a version into a folder, for use elsewhere.
    #[command(
        after_help = "Example:\n  skerry model export classifier 3 --oms --key our-key.pem --out classifier-3\n  \
                      model_signing verify key classifier-3 --signature classifier-3/model.sig --public_key our-public-key.pem\n\n\
                      A key pair: openssl ecparam -name prime256v1 -genkey -noout -out our-key.pem\n\
                      and: openssl ec -in our-key.pem -pubout -out our-public-key.pem"
    )]
    Export(ExportArgs),
    /// Says whether a device could run an ONNX file, and if not, what stops it; asks no server.
    #[command(
        after_help = "Does what a device does: looks at the whole graph, names every operator that is not supported and the \
        nodes that use it,\nthen plans the model with tract. A model with dynamic dimensions (-1) is planned when a request says \
        its shape, so that\nwhat is wrong with a shape shows only there: put a golden vector of each shape into the bundle.\n\n\
        Example:\n  skerry model check model.onnx"
    )]
    Check {
        /// The ONNX file.
        onnx: PathBuf,
    },
    /// Lists models.
    List,
    /// Shows a model and its versions.
    Show {
        /// The model.
        model: ModelName,
    },
    /// Points an alias at a version, for example `champion`.
    Alias {
        /// The model.
        model: ModelName,
        /// The alias.
        alias: String,
        /// The version.
        version: ModelVersion,
    },
    /// Approves a version: bundles that are built from now on carry who approved it, and when.
    #[command(
        after_help = "With `[registry] four_eyes = true` in the control plane's configuration, whoever registered a version cannot\n\
                      approve it. Approve before `skerry bundle build`: the approval goes into the signed manifest."
    )]
    Approve {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
    },
    /// Tags a version.
    Tag {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
        /// KEY=VALUE.
        tag: super::parse::Pair,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let (answer, print): (Value, fn(&Value)) = match command {
        Command::Register {
            model,
            onnx,
            description,
            signature,
        } => {
            let content = read(&onnx)?;
            let mut path = format!("/api/v1/models/{model}/versions?description={}", encode(&description));
            if let Some(bundle) = signature.check_and_upload(&client, &onnx, &content)? {
                path.push_str(&format!("&oms={}", encode(&bundle.to_string())));
            }
            let version = client.post_bytes(&path, &content)?;
            (version, |v| {
                let (model, version) = (text(v, "model"), text(v, "version"));
                output::line(&format!(
                    "{model} v{version} ({})",
                    bytes(v["size_bytes"].as_u64().unwrap_or(0))
                ));
            })
        }
        Command::Export(args) => (oms::export(&args, &client)?, oms::print_export),
        Command::Check { onnx } => {
            let content = read(&onnx)?;
            let checked = skerry_inference::check_model(&content);
            let checked = checked.map_err(|error| {
                Failure::Failed(anyhow::Error::new(error).context(format!("{} cannot run on a device", onnx.display())))
            })?;
            let value = json!({"inputs": checked.inputs, "outputs": checked.outputs});
            (value, |v| {
                for direction in ["inputs", "outputs"] {
                    for tensor in v[direction].as_array().into_iter().flatten() {
                        let (name, datatype) = (text(tensor, "name"), text(tensor, "datatype"));
                        output::line(&format!("{direction:8} {name} {datatype} {}", tensor["shape"]));
                    }
                }
            })
        }
        Command::List => (client.get("/api/v1/models")?, |v| {
            let row = |m: &Value| {
                let versions = m["versions"].as_array().map_or(0, Vec::len);
                [
                    text(m, "name"),
                    versions.to_string(),
                    pairs(&m["aliases"]),
                    text(m, "description"),
                ]
            };
            output::table(
                ["model", "versions", "aliases", "description"],
                list(v.clone(), "models").iter().map(row),
            );
        }),
        Command::Show { model } => (client.get(&format!("/api/v1/models/{model}"))?, |v| {
            let row = |m: &Value| {
                let size = bytes(m["size_bytes"].as_u64().unwrap_or(0));
                let made = ago(m["created_at_ms"].as_u64());
                [
                    text(m, "version"),
                    size,
                    made,
                    text(m, "run_id"),
                    text(&m["approval"], "by"),
                    text(&m["signature"], "key").chars().take(16).collect(),
                    pairs(&m["tags"]),
                    text(m, "description"),
                ]
            };
            let header = [
                "version",
                "size",
                "registered",
                "run",
                "approved by",
                "signed by key",
                "tags",
                "description",
            ];
            output::table(header, v["versions"].as_array().into_iter().flatten().map(row));
        }),
        Command::Alias { model, alias, version } => {
            let path = format!("/api/v1/models/{model}/aliases/{alias}");
            (client.put(&path, &json!({"version": version}))?, |_| {
                output::line("done")
            })
        }
        Command::Approve { model, version } => {
            let path = format!("/api/v1/models/{model}/versions/{version}/approve");
            (client.post(&path, &json!({}))?, |v| {
                let (model, version) = (text(v, "model"), text(v, "version"));
                output::line(&format!(
                    "{model} v{version} approved by {}",
                    text(&v["approval"], "by")
                ));
            })
        }
        Command::Tag { model, version, tag } => {
            let path = format!("/api/v1/models/{model}/versions/{version}/tags/{}", encode(&tag.key));
            (client.put(&path, &json!({"value": tag.value}))?, |_| {
                output::line("done")
            })
        }
    };
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table => print(&answer),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
