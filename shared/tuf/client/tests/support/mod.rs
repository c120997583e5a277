//! A web server on loopback, a run of the client, and a repository that we write.

#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use skerry_tuf::{
    DelegatedPaths, Delegations, KeySet, MetaFile, Metadata, NewRoot, PathPattern, RoleName, SearchOrder, SigningKey,
    TargetFile, TargetName, UnixTime, new_root, new_snapshot, new_targets, new_timestamp, sign_metadata,
};
use tempfile::TempDir;

/// What a server answers: status, and body if it has one.
type Answer = (u16, Option<Vec<u8>>);

/// A web server for the files of a folder, under the names as they stand in the request. Ends with the test process.
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<State>,
}

struct State {
    folder: PathBuf,
    requests: Mutex<Vec<String>>,
    special: Mutex<BTreeMap<String, Answer>>,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            folder: folder.to_owned(),
            requests: Mutex::default(),
            special: Mutex::default(),
        });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || served.answer(&stream.unwrap()));
            }
        });
        Self { url, state }
    }

    /// Answers requests for `path` in another way.
    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.state.special.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Takes the paths that were asked for since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }
}

impl State {
    fn answer(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next().unwrap().unwrap();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        let path = request.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        assert!(
            !path.split('/').any(|segment| segment == ".."),
            "{path} leaves the folder"
        );
        let special = self.special.lock().unwrap().get(&path).cloned();
        let (status, body) = special.unwrap_or_else(|| match std::fs::read(self.folder.join(&path)) {
            Ok(body) => (200, Some(body)),
            Err(_) => (404, None),
        });
        self.requests.lock().unwrap().push(path);
        let mut out = stream;
        // Without a length, so that only the client's own limit ends a body.
        let _ = write!(out, "HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n");
        // A client that has enough hangs up.
        let _ = out.write_all(&body.unwrap_or_default());
    }
}

/// The client's folders.
pub(crate) struct Device {
    pub(crate) place: TempDir,
    pub(crate) url: String,
}

impl Device {
    pub(crate) fn new(server: &Server) -> Self {
        Self {
            place: tempfile::tempdir().unwrap(),
            url: server.url.clone(),
        }
    }

    pub(crate) fn metadata(&self) -> PathBuf {
        self.place.path().join("metadata")
    }

    pub(crate) fn targets(&self) -> PathBuf {
        self.place.path().join("targets")
    }

    pub(crate) fn init(&self, root: &Path) -> Output {
        self.run(&["init", root.to_str().unwrap()])
    }

    pub(crate) fn refresh(&self) -> Output {
        self.run(&["--metadata-url", &format!("{}/metadata/", self.url), "refresh"])
    }

    pub(crate) fn download(&self, names: &[&str]) -> Output {
        let (metadata, targets) = (format!("{}/metadata", self.url), format!("{}/targets", self.url));
        let into = self.targets();
        let mut arguments = vec!["--metadata-url", &metadata, "--target-base-url", &targets];
        arguments.extend(["--target-dir", into.to_str().unwrap()]);
        for name in names {
            arguments.extend(["--target-name", name]);
        }
        arguments.push("download");
        self.run(&arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_skerry-tuf-client"))
            .arg("--metadata-dir")
            .arg(self.metadata())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The names of the files in a folder, in order.
    pub(crate) fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[track_caller]
pub(crate) fn succeeds(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
}

#[track_caller]
pub(crate) fn fails(output: &Output, because: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(because), "{stderr}");
}

/// A repository that we write: one key per role, and a delegated role `camera/front` for `camera/*`.
pub(crate) struct Published {
    pub(crate) place: TempDir,
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn keys(seeds: &[u8], threshold: u32) -> KeySet {
    let keys = seeds.iter().map(|seed| key(*seed).public_key());
    KeySet::new(keys, NonZeroU32::new(threshold).unwrap())
}

fn expires() -> UnixTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixTime::from_seconds(now.as_secs().try_into().unwrap()).plus_days(30)
}

fn sign<T: Metadata>(metadata: &T, seeds: &[u8]) -> Vec<u8> {
    let keys: Vec<SigningKey> = seeds.iter().map(|seed| key(*seed)).collect();
    sign_metadata(metadata, &keys).unwrap()
}

impl Published {
    /// Root 1, and the first release.
    pub(crate) fn new() -> Self {
        let repository = Self {
            place: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(repository.place.path().join("metadata")).unwrap();
        repository.root(1, 2, &[1]);
        repository.release(1, 2);
        repository
    }

    pub(crate) fn root_file(&self) -> PathBuf {
        self.place.path().join("metadata/1.root.json")
    }

    /// A root that names `timestamp` as the key of timestamp.
    pub(crate) fn root(&self, version: u64, timestamp: u8, signers: &[u8]) {
        let root = new_root(NewRoot {
            version,
            expires: expires(),
            root: keys(&[1, 11], 1),
            timestamp: keys(&[timestamp], 1),
            snapshot: keys(&[3], 1),
            targets: keys(&[4, 14], 2),
            assignment: Some(keys(&[5], 1)),
            time: None,
        });
        self.metadata(&format!("{version}.root.json"), &sign(&root, signers));
    }

    /// Everything but a root, in one version; the targets have it as their content.
    pub(crate) fn release(&self, version: u64, timestamp: u8) {
        let mut camera = new_targets(version, expires());
        let content = format!("version {version}");
        self.target(&mut camera.targets, "camera/front model", content.as_bytes());
        let camera = sign(&camera, &[6]);
        self.metadata(&format!("{version}.camera%2Ffront.json"), &camera);
        self.release_with(version, timestamp, 6, MetaFile::describe(version, &camera));
    }

    /// A release that takes the key of the delegated role away, and lists the old file of the role as if nothing had happened.
    pub(crate) fn release_with_other_camera_key(&self, version: u64, camera: &[u8]) {
        self.release_with(version, 2, 16, MetaFile::describe(1, camera));
    }

    fn release_with(&self, version: u64, timestamp: u8, camera_key: u8, camera: MetaFile) {
        let mut targets = new_targets(version, expires());
        let content = format!("version {version}");
        self.target(&mut targets.targets, "model", content.as_bytes());
        let mut delegations = Delegations::default();
        delegations.delegate(
            RoleName::new("camera/front").unwrap(),
            keys(&[camera_key], 1),
            DelegatedPaths::Patterns(vec![PathPattern::new("camera/*")]),
            SearchOrder::Terminate,
        );
        targets.delegations = Some(delegations);
        let targets = sign(&targets, &[4, 14]);
        self.metadata(&format!("{version}.targets.json"), &targets);

        let mut snapshot = new_snapshot(version, expires(), MetaFile::describe(version, &targets));
        snapshot.meta.insert("camera/front.json".to_owned(), camera);
        let snapshot = sign(&snapshot, &[3]);
        self.metadata(&format!("{version}.snapshot.json"), &snapshot);
        let listed = MetaFile::describe(version, &snapshot);
        let file = sign(&new_timestamp(version, expires(), listed), &[timestamp]);
        self.metadata("timestamp.json", &file);
    }

    /// Replaces a metadata file.
    pub(crate) fn metadata(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.place.path().join("metadata").join(file), bytes).unwrap();
    }

    fn target(&self, targets: &mut BTreeMap<TargetName, TargetFile>, name: &str, content: &[u8]) {
        let file = TargetFile::describe(content);
        let (folder, base) = name.rsplit_once('/').unwrap_or((".", name));
        let folder = self.place.path().join("targets").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let base = format!("{}.{}", file.hashes["sha256"], base.replace(' ', "%20"));
        std::fs::write(folder.join(base), content).unwrap();
        targets.insert(TargetName::new(name).unwrap(), file);
    }
}
