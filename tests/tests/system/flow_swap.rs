//! install → run, while clients ask all the time: over HTTP and over gRPC.

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_system_tests::{
    Device, Fleet,
    fixtures::{MODEL, Window, test_windows},
    grpc,
    process::PATIENCE,
};

use crate::PROGRAM;

/// Answers by the version that each names; a version that answers in two ways has two.
type Seen = BTreeMap<String, Vec<Vec<Vec<u8>>>>;

/// One client of the load. Each asks again as soon as it is answered.
enum Client {
    Http(ureq::Agent, String, String),
    Grpc(grpc::Connection, grpc::Call),
}

impl Client {
    fn over_http(device: &Device, window: &Window) -> Client {
        let outputs = ["probabilities", "label"].map(|name| json!({"name": name}));
        let input = json!({"name": "window", "datatype": "FP32", "shape": [1, 6, 100], "data": window.samples});
        let body = json!({"inputs": [input], "outputs": outputs}).to_string();
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
        let url = format!("{}/v2/models/{MODEL}/infer", device.url());
        Client::Http(config.build().into(), url, body)
    }

    fn over_grpc(device: &Device, window: &Window) -> Client {
        let host = device.url().strip_prefix("http://").unwrap();
        let connection = grpc::Connection::open(host).unwrap();
        let message = grpc::infer_request(MODEL, "window", &[1, 6, 100], &window.samples);
        let call = connection.prepare("ModelInfer", &message);
        Client::Grpc(connection, call)
    }

    /// The version that has answered, and its answer.
    fn ask(&mut self) -> Result<(String, Vec<Vec<u8>>)> {
        match self {
            Client::Http(http, url, body) => {
                // Any status but 200 is an error.
                let answer: Value = http.post(&*url).send(&*body)?.body_mut().read_json()?;
                let version = answer["model_version"].as_str().context("no version")?;
                let outputs = answer["outputs"].as_array().context("no outputs")?;
                ensure!(outputs.len() == 2, "{answer}");
                let data = outputs.iter().map(|output| output["data"].to_string().into_bytes());
                Ok((version.to_owned(), data.collect()))
            }
            Client::Grpc(connection, call) => grpc::infer_response(&connection.call(call)?),
        }
    }

    /// Asks until `enough`; says when it has seen the second version.
    fn run(mut self, enough: &AtomicBool, seen_new: &mpsc::Sender<()>) -> Result<(u64, Seen)> {
        let (mut count, mut seen, mut last) = (0, Seen::new(), String::new());
        while !enough.load(Ordering::Relaxed) {
            let (version, answer) = self.ask()?;
            ensure!(version >= last, "version {version} after version {last}");
            if version == "2" && last != "2" {
                seen_new.send(())?;
            }
            let answers = seen.entry(version.clone()).or_default();
            if !answers.contains(&answer) {
                answers.push(answer);
            }
            last = version;
            count += 1;
        }
        Ok((count, seen))
    }
}

#[test]
fn flow_a_swap_under_load_refuses_nothing_and_mixes_nothing() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    let device = &devices[0];
    fleet.release(1).unwrap();
    fleet.release(2).unwrap();
    fleet.deploy(1).unwrap();
    let window = &test_windows().unwrap()[0];
    let (http, grpc) = (Client::over_http, Client::over_grpc);
    let clients: Vec<Client> = [http, http, grpc, grpc]
        .iter()
        .map(|over| over(device, window))
        .collect();
    let enough = AtomicBool::new(false);
    let (seen_new, saw_new) = mpsc::channel();
    let ended: Vec<(u64, Seen)> = thread::scope(|scope| {
        let (enough, count) = (&enough, clients.len());
        let run = |client: Client| {
            let seen_new = seen_new.clone();
            scope.spawn(move || {
                let ended = client.run(enough, &seen_new);
                if ended.is_err() {
                    enough.store(true, Ordering::Relaxed);
                }
                ended
            })
        };
        let running: Vec<_> = clients.into_iter().map(run).collect();
        let deployed = fleet.deploy(2);
        let all_new = (0..count).all(|_| saw_new.recv_timeout(PATIENCE).is_ok());
        enough.store(true, Ordering::Relaxed);
        let ended = running
            .into_iter()
            .map(|client| client.join().unwrap().unwrap())
            .collect();
        deployed.unwrap();
        assert!(all_new, "every client sees the new version");
        ended
    });
    for (count, seen) in &ended {
        let answers: Vec<_> = seen
            .iter()
            .map(|(version, answers)| (version.as_str(), answers.len()))
            .collect();
        assert_eq!(
            answers,
            [("1", 1), ("2", 1)],
            "in {count} calls each version gave one answer"
        );
        assert_ne!(seen["1"], seen["2"], "else a mixture would not be seen");
    }
    let asked: u64 = ended.iter().map(|(count, _)| count).sum();
    let status = device.status().unwrap();
    assert_eq!(
        (&status["inferences"], &status["inference_errors"]),
        (&json!(asked), &json!(0))
    );
}
