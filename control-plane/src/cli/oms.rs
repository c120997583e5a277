//! OpenSSF Model Signing on the operator's side: a signature is checked before a model is registered, and an exported model can
//! carry one for others.
//!
//! The control plane checks again with the keys that it trusts; here the user says whom he trusts, and the whole folder is
//! measured, of which the control plane gets the ONNX file alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};
use zeroize::Zeroizing;

use super::{client::Client, output};
use crate::registry::oms::{self, OmsError, PublicKey, Resource, SecretKey, Statement, Unsigned};

/// The file that an exported model is in.
const ONNX_NAME: &str = "model.onnx";
/// The file that its signature is in: the default of `model_signing`.
const SIGNATURE_NAME: &str = "model.sig";

/// The signature that a model comes with.
#[derive(Args, Debug)]
pub(super) struct SignatureArgs {
    /// An OpenSSF Model Signing bundle (v1.0, P-256 key) that covers the ONNX file.
    #[arg(long, value_name = "BUNDLE", requires = "oms_key")]
    oms: Option<PathBuf>,
    /// The signer's public key, in PEM.
    #[arg(long, value_name = "PEM", requires = "oms")]
    oms_key: Option<PathBuf>,
    /// The folder that was signed, if it was one; the ONNX file's folder if not given.
    #[arg(long, value_name = "DIR", requires = "oms")]
    oms_dir: Option<PathBuf>,
    /// Accepts files in that folder that nobody signed.
    #[arg(long, requires = "oms")]
    ignore_unsigned: bool,
}

impl SignatureArgs {
    /// Checks the signature, if there is one, and gives it to the control plane. Returns its digest there.
    pub(super) fn check_and_upload(&self, client: &Client, onnx: &Path, content: &[u8]) -> Result<Option<Digest>> {
        let (Some(bundle), Some(key)) = (&self.oms, &self.oms_key) else {
            return Ok(None);
        };
        let bytes = read(bundle)?;
        let key = PublicKey::from_pem(&String::from_utf8_lossy(&read(key)?))
            .with_context(|| format!("cannot use {}", key.display()))?;
        let check = || -> Result<(), OmsError> {
            let verified = oms::verify(&bytes, std::slice::from_ref(&key))?;
            let digest = Digest::of(content);
            if !verified.covers(&digest) {
                return Err(OmsError::NotCovered(digest));
            }
            if verified.statement().only_file().is_some() {
                return Ok(());
            }
            let folder = self.oms_dir.as_deref().unwrap_or_else(|| match onnx.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            });
            let unsigned = match self.ignore_unsigned {
                true => Unsigned::Ignore,
                false => Unsigned::Refuse,
            };
            oms::check_folder(verified.statement(), folder, bundle, unsigned)
        };
        check().with_context(|| format!("{} does not vouch for {}", bundle.display(), onnx.display()))?;
        let digest = Digest::of(&bytes);
        client.upload(&digest, &bytes)?;
        Ok(Some(digest))
    }
}

/// What `skerry model export` is asked for.
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// The model.
    model: ModelName,
    /// The version.
    version: ModelVersion,
    /// The folder to make.
    #[arg(long)]
    out: PathBuf,
    /// Signs the folder as OpenSSF Model Signing v1.0 says.
    #[arg(long, requires = "key")]
    oms: bool,
    /// The private key for that: P-256, in PEM, not encrypted.
    #[arg(long, value_name = "PEM", requires = "oms")]
    key: Option<PathBuf>,
}

/// Writes a version into a folder that others can check.
pub(super) fn export(args: &ExportArgs, client: &Client) -> Result<Value> {
    let ExportArgs {
        model, version, out, ..
    } = args;
    // Read before anything is made: a mistake in the key leaves no half folder behind.
    let key = args.key.as_deref().map(secret_key).transpose()?;
    let content = client.get_bytes(&format!("/api/v1/models/{model}/versions/{version}/onnx"))?;
    let info = client.get(&format!("/api/v1/models/{model}/versions/{version}"))?;
    let digest = Digest::of(&content);
    if info["digest"] != digest.to_string() {
        bail!("the control plane sent another file than the one it has registered ({digest})");
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut entries = fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))?;
    if entries.next().is_some() {
        bail!(
            "{} is not empty: what lies there would seem to be signed",
            out.display()
        );
    }
    write(&out.join(ONNX_NAME), &content)?;
    let mut answer = json!({"model": model, "version": version, "onnx": out.join(ONNX_NAME)});
    if let Some(key) = key {
        let name = ONNX_NAME.to_owned();
        let ignored = vec![SIGNATURE_NAME.to_owned()];
        let statement = Statement::new(&format!("{model}-{version}"), vec![Resource { name, digest }], ignored)?;
        write(&out.join(SIGNATURE_NAME), &oms::sign(&statement, &key))?;
        answer["signature"] = json!(out.join(SIGNATURE_NAME));
        answer["key"] = json!(key.public().fingerprint());
    }
    Ok(answer)
}

/// Prints what [`export`] did.
pub(super) fn print_export(answer: &Value) {
    let text = |key| answer[key].as_str().unwrap_or_default();
    output::line(text("onnx"));
    if answer["signature"].is_string() {
        output::line(&format!("{} by key {}", text("signature"), text("key")));
    }
}

fn secret_key(path: &Path) -> Result<SecretKey> {
    let bytes = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no PEM file", path.display()))?;
    SecretKey::from_pem(text).with_context(|| format!("cannot use {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
