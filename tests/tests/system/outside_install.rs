//! The installation by one line: the script of a real control plane, run by a real shell with curl, below a folder of the test.
//!
//! Not here: users and services, which need root; `packaging/release-check.sh` has those.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skerry_system_tests::{Fleet, faults::files_in, process::Process};

use crate::PROGRAM;

/// A fleet whose control plane has a package: the real tarball, with a program in it that is the one under test.
fn fleet_with_package() -> Result<Fleet> {
    let fleet = Fleet::start(PROGRAM)?;
    publish(&fleet, "")?;
    Ok(fleet)
}

fn publish(fleet: &Fleet, remark: &str) -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = fleet.path("package");
    let manual = folder.join("manual");
    for file in [
        "man/skerry-agent.1",
        "bash/skerry-agent.bash",
        "zsh/_skerry-agent",
        "fish/skerry-agent.fish",
    ] {
        let path = manual.join(file);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, "generated\n")?;
    }
    let program = folder.join("program");
    fs::write(
        &program,
        format!("#!/bin/sh\n# {remark}\nexec '{PROGRAM}' agent \"$@\"\n"),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let made = Command::new(repository.join("packaging/tarball.sh"))
        .arg(&program)
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .arg(&manual)
        .arg(&folder)
        .env("SOURCE_DATE_EPOCH", "1767225600")
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let tarball = String::from_utf8(made.stdout)?;
    fleet.skerry_json(&["agent-package", "publish", tarball.trim()])?;
    Ok(())
}

fn script(fleet: &Fleet, token: &str) -> Result<String> {
    let answer = fleet.client().get_bytes(&format!("/install.sh?token={token}"))?;
    Ok(String::from_utf8(answer)?)
}

/// The line that an operator is shown for a new token, without the root that the test has not.
fn line(fleet: &Fleet) -> Result<String> {
    let token = fleet.client().post("/api/v1/device-tokens", &json!({}))?;
    let line = token["install_line"].as_str().context("a token has a line")?;
    Ok(line.replace("| sudo sh", "| sh"))
}

/// Runs a script as `curl … | sh` does, below a folder.
fn run(script: &str, root: &Path, device: &str) -> Result<Output> {
    run_with(script, &[], root, device)
}

fn run_with(script: &str, arguments: &[&str], root: &Path, device: &str) -> Result<Output> {
    let mut shell = Command::new("sh")
        .args(["-s", "--"])
        .args(arguments)
        .env("DESTDIR", root)
        .env("SKERRY_DEVICE_ID", device)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = shell.stdin.take().context("stdin is a pipe")?;
    // A shell that refuses early reads no further.
    let _ = input.write_all(script.as_bytes());
    drop(input);
    Ok(shell.wait_with_output()?)
}

fn words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The test's root, which the script makes.
fn root(fleet: &Fleet) -> Result<PathBuf> {
    let root = fleet.path("root");
    fs::create_dir_all(&root)?;
    Ok(root)
}

#[test]
fn one_line_installs_and_enrols_and_can_be_run_again() -> Result<()> {
    let fleet = fleet_with_package()?;
    let root = root(&fleet)?;
    let first = run(&line(&fleet)?, &root, "kitchen-1")?;
    assert!(first.status.success(), "{}", words(&first));
    let identity = fs::read(root.join("var/lib/skerry/identity.json"))?;
    assert_eq!(fleet.device("kitchen-1")?["id"], "kitchen-1");

    // A second run needs no token.
    let text = script(&fleet, "skt_used.up")?;
    let again = run(&text, &root, "kitchen-1")?;
    assert!(again.status.success(), "{}", words(&again));
    assert!(words(&again).contains("enrolled already"), "{}", words(&again));
    assert_eq!(fs::read(root.join("var/lib/skerry/identity.json"))?, identity);

    // What it has installed runs, and comes to be in sync.
    let agent = root.join("usr/bin/skerry-agent");
    let state = root.join("var/lib/skerry");
    let mut command = Command::new(&agent);
    command
        .args(["run", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(&state);
    let process = Process::start("the installed agent", command, &fleet.path("installed.log"))?;
    process.wait_for_line("where its local API listens", |line| {
        line.contains("local API listens").then_some(())
    })?;
    let status = Command::new(&agent)
        .args(["status", "--wait", "60s", "--state-dir"])
        .arg(&state)
        .output()?;
    assert!(status.status.success(), "{}", words(&status));
    // The device hears of its connection before the control plane has written it down.
    fleet.wait("the device to be connected", || {
        Ok((fleet.device("kitchen-1")?["connected"] == true).then_some(()))
    })?;
    process.kill()?;

    // The program goes and the identity stays; then everything goes.
    let off = run_with(&text, &["--uninstall"], &root, "kitchen-1")?;
    assert!(off.status.success(), "{}", words(&off));
    assert!(!agent.exists());
    assert_eq!(fs::read(state.join("identity.json"))?, identity);
    let back = run(&text, &root, "kitchen-1")?;
    assert!(back.status.success(), "{}", words(&back));
    let gone = run_with(&text, &["--purge"], &root, "kitchen-1")?;
    assert!(gone.status.success(), "{}", words(&gone));
    assert_eq!(files_in(&root)?, Vec::<PathBuf>::new(), "something is left");
    Ok(())
}

#[test]
fn a_line_sends_its_token_to_no_other_control_plane() -> Result<()> {
    let (ours, theirs) = (fleet_with_package()?, fleet_with_package()?);
    let root = root(&ours)?;
    let refused = run(&line(&ours)?.replace(&ours.url(), &theirs.url()), &root, "kitchen-1")?;
    assert!(!words(&refused).contains("==>"), "{}", words(&refused));
    assert!(words(&refused).contains("FAILED"), "{}", words(&refused));
    assert_eq!(files_in(&root)?, Vec::<PathBuf>::new());
    // A file with the right certificate and one more is another file, too.
    let mut anchor = ours.client().get_bytes("/install.pem")?;
    anchor.extend(theirs.client().get_bytes("/install.pem")?);
    let both = ours.path("both.pem");
    fs::write(&both, anchor)?;
    let file = format!("file://{}", both.display());
    let forged = line(&ours)?.replacen(&format!("{}/install.pem", ours.url()), &file, 1);
    let refused = run(&forged, &root, "kitchen-1")?;
    assert!(words(&refused).contains("FAILED"), "{}", words(&refused));
    assert_eq!(files_in(&root)?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn a_package_that_is_not_the_announced_one_is_not_installed() -> Result<()> {
    let fleet = fleet_with_package()?;
    let root = root(&fleet)?;
    let text = script(&fleet, &fleet.device_token()?)?;
    publish(&fleet, "another program under the same name")?;
    let refused = run(&text, &root, "kitchen-1")?;
    assert!(!refused.status.success());
    assert!(words(&refused).contains("another SHA-256"), "{}", words(&refused));
    assert_eq!(fs::read_dir(&root)?.count(), 0, "something was installed");
    Ok(())
}

#[test]
fn a_script_that_broke_off_does_nothing() -> Result<()> {
    let fleet = fleet_with_package()?;
    let root = root(&fleet)?;
    let text = script(&fleet, &fleet.device_token()?)?;
    let (broken, _) = text.trim_end().rsplit_once('\n').context("more than a line")?;
    run(broken, &root, "kitchen-1")?;
    assert_eq!(fs::read_dir(&root)?.count(), 0, "something was installed");
    Ok(())
}

#[test]
fn a_token_that_nobody_made_ends_in_an_error() -> Result<()> {
    let fleet = fleet_with_package()?;
    let root = root(&fleet)?;
    let token = fleet.device_token()?;
    let (secret, pins) = token.split_once('.').context("a token has a secret and pins")?;
    let other: String = secret.chars().rev().take(20).collect();
    let text = script(&fleet, &format!("skt_{other}.{pins}"))?;
    let refused = run(&text, &root, "kitchen-1")?;
    assert!(!refused.status.success());
    assert!(words(&refused).contains("the enrolment failed"), "{}", words(&refused));
    assert!(!root.join("var/lib/skerry/identity.json").exists());
    Ok(())
}
