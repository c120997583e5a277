//! What the local inference API costs beyond the inference itself.
//!
//! `cargo bench -p skerry-system-tests --bench inference [-- REQUESTS]`. An agent serves the demo's v2; one client asks over a
//! kept connection with the binary tensor extension and with JSON. The peer is the same pipeline, from the agent's own files,
//! called in this process with the same windows. The three take turns, a hundred requests each. Goal: the difference of the
//! p50s is at most 150 µs.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use skerry_control_plane::bundle::folder::BundleFolder;
use skerry_inference::{LoadedBundle, Runtime};
use skerry_shared::oip::Tensor;
use skerry_system_tests::{
    Device, Fleet,
    fixtures::{MODEL, Window, test_windows},
    measure::{introduction, percentile, spread},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_skerry-under-test");
const REQUESTS: usize = 4000;
const TURN: usize = 100;
/// Requests that are not counted, of each kind.
const WARM_UP: usize = 500;

fn main() -> Result<()> {
    let requests = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let requests: usize = requests.unwrap_or(REQUESTS);
    let mut out = std::io::stdout();
    let goal = "at most 150 µs between the p50 over HTTP and the p50 in process";
    writeln!(out, "{}", introduction("inference", goal))?;

    let fleet = Fleet::start(PROGRAM)?;
    let mut device = fleet.enroll("dev-1")?;
    device.arguments.clear();
    device.start()?;
    fleet.release(1)?;
    fleet.release(2)?;
    fleet.deploy(2)?;
    let windows = test_windows()?;
    let bundle = load(&fleet, &device)?;
    let inputs: Vec<Tensor> = windows.iter().map(tensor).collect::<Result<_>>()?;
    let bodies = |body: fn(&Window) -> Result<Body>| windows.iter().map(body).collect::<Result<Vec<_>>>();
    let mut kinds = [
        Kind::new("in process", Way::InProcess(&bundle, inputs)),
        Kind::new(
            "HTTP, binary tensors",
            Way::Http(Connection::open(&device, &bodies(binary)?)?),
        ),
        Kind::new("HTTP, JSON", Way::Http(Connection::open(&device, &bodies(in_json)?)?)),
    ];
    for turn in 0..(requests + WARM_UP).div_ceil(TURN) {
        for kind in &mut kinds {
            for position in 0..TURN {
                let took = kind.way.ask((turn * TURN + position) % windows.len())?;
                if turn * TURN >= WARM_UP {
                    kind.micros.push(took.as_secs_f64() * 1e6);
                }
            }
        }
    }
    let in_process = percentile(&kinds[0].micros, 0.5);
    for kind in &kinds {
        let difference = percentile(&kind.micros, 0.5) - in_process;
        writeln!(
            out,
            "{}: {}, difference of p50 {difference:.1} µs",
            kind.name,
            spread(&kind.micros, "µs")
        )?;
    }
    let status = device.status()?;
    writeln!(
        out,
        "the agent counted {} inferences and {} errors",
        status["inferences"], status["inference_errors"]
    )?;
    Ok(())
}

/// The bundle that the device serves, from the device's files.
fn load(fleet: &Fleet, device: &Device) -> Result<LoadedBundle> {
    let manifest = BundleFolder::open(&fleet.path("bundle-v2"))?.manifest;
    let objects = device.state_dir.join("store/objects");
    let mut read = |resource: &skerry_shared::bundle::Resource| std::fs::read(objects.join(resource.digest.to_hex()));
    // As the agent does: the golden vectors choose the plan.
    Ok(LoadedBundle::load_best(&Runtime::new()?, &manifest, &mut read)?)
}

fn tensor(window: &Window) -> Result<Tensor> {
    Ok(Tensor::from_f32("window", vec![1, 6, 100], &window.samples)?)
}

/// One way to ask, and what it took.
struct Kind<'a> {
    name: &'static str,
    way: Way<'a>,
    micros: Vec<f64>,
}

impl<'a> Kind<'a> {
    fn new(name: &'static str, way: Way<'a>) -> Kind<'a> {
        let micros = Vec::new();
        Kind { name, way, micros }
    }
}

enum Way<'a> {
    InProcess(&'a LoadedBundle, Vec<Tensor>),
    Http(Connection),
}

impl Way<'_> {
    fn ask(&mut self, window: usize) -> Result<Duration> {
        match self {
            Way::InProcess(bundle, inputs) => {
                let inputs = vec![inputs[window].clone()];
                let began = Instant::now();
                let outputs = bundle.infer(inputs)?;
                let took = began.elapsed();
                anyhow::ensure!(!outputs.is_empty(), "no outputs");
                Ok(took)
            }
            Way::Http(connection) => connection.ask(window),
        }
    }
}

/// A body with what its header fields must say.
struct Body {
    fields: String,
    bytes: Vec<u8>,
}

fn binary(window: &Window) -> Result<Body> {
    let data: Vec<u8> = window.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let header = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{
            "name": "window", "datatype": "FP32", "shape": [1, 6, 100],
            "parameters": {"binary_data_size": data.len()},
        }],
    });
    let mut bytes = serde_json::to_vec(&header)?;
    let fields = format!(
        "content-type: application/octet-stream\r\ninference-header-content-length: {}\r\n",
        bytes.len()
    );
    bytes.extend(data);
    Ok(Body { fields, bytes })
}

fn in_json(window: &Window) -> Result<Body> {
    let body =
        json!({"inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 6, 100], "data": window.samples}]});
    let fields = "content-type: application/json\r\n".to_owned();
    let bytes = serde_json::to_vec(&body)?;
    Ok(Body { fields, bytes })
}

/// A kept connection: requests made beforehand, one write and usually one read each, so that the client costs little.
struct Connection {
    stream: TcpStream,
    requests: Vec<Vec<u8>>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(device: &Device, bodies: &[Body]) -> Result<Connection> {
        let host = device.url().strip_prefix("http://").context("an address")?;
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        let request = |body: &Body| {
            let length = body.bytes.len();
            let head = format!(
                "POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: {host}\r\n{}content-length: {length}\r\n\r\n",
                body.fields
            );
            [head.as_bytes(), &body.bytes].concat()
        };
        Ok(Connection {
            requests: bodies.iter().map(request).collect(),
            stream,
            answer: vec![0; 64 * 1024],
        })
    }

    fn ask(&mut self, window: usize) -> Result<Duration> {
        let began = Instant::now();
        self.stream.write_all(&self.requests[window])?;
        let mut filled = 0;
        let end = loop {
            let read = self.stream.read(&mut self.answer[filled..])?;
            if read == 0 {
                bail!("the agent closed the connection");
            }
            filled += read;
            if let Some(end) = answer_end(&self.answer[..filled]) {
                break end;
            }
        };
        let took = began.elapsed();
        if filled != end || !self.answer.starts_with(b"HTTP/1.1 200 ") {
            bail!("{}", String::from_utf8_lossy(&self.answer[..filled]));
        }
        Ok(took)
    }
}

/// Where the answer ends, as soon as its head is there and all of its body.
fn answer_end(answer: &[u8]) -> Option<usize> {
    let head_end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..head_end]).ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let end = head_end + length.trim().parse::<usize>().ok()?;
    (answer.len() >= end).then_some(end)
}
