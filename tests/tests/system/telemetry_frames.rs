//! A telemetry frame's way over a real broker: stored once, acknowledged each time it comes, also by a control plane that was
//! started anew.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context;
use prost::Message as _;
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS};
use skerry_control_plane::{
    app::Server,
    audit::By,
    cli::keys,
    config::{Config, Mqtt},
    devices::{self, Credential, Enrolment},
    telemetry::query,
};
use skerry_shared::{
    desired::{Ack, FrameId},
    digest::Digest,
    otlp::{
        ExportMetricsServiceRequest, Gauge, Metric, MetricData, NumberDataPoint, NumberValue, ResourceMetrics,
        ScopeMetrics, TelemetryFrame,
    },
    schema::Envelope,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn config(data: &Path) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        http_bind: any,
        mqtt: Mqtt::Embedded { bind: any },
        // Who the device is does not matter here.
        mqtt_plain: true,
        signing_dir: data.join("keys/online"),
        ..Config::new(data)
    }
}

/// A device that speaks MQTT and nothing else.
struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    async fn connect(server: &Server) -> anyhow::Result<Device> {
        let address = server.mqtt_address().context("no embedded broker")?;
        let options = MqttOptions::new("dev-1", address.ip().to_string(), address.port());
        let (client, events) = AsyncClient::new(options, 16);
        client.subscribe("skerry/v1/d/dev-1/ack", QoS::AtLeastOnce).await?;
        let mut device = Device { client, events };
        device
            .until(|event| matches!(event, Event::Incoming(Incoming::SubAck(_))).then_some(()))
            .await?;
        Ok(device)
    }

    async fn until<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> anyhow::Result<T> {
        let found = async {
            loop {
                if let Some(found) = wanted(self.events.poll().await?) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.context("waited too long")?
    }

    /// Publishes until it is acknowledged, as an agent does: the control plane may not have subscribed yet.
    async fn send(&mut self, frame: &[u8]) -> anyhow::Result<Ack> {
        let topic = "skerry/v1/d/dev-1/telemetry";
        for _ in 0..20 {
            self.client.publish(topic, QoS::AtLeastOnce, false, frame).await?;
            let acked = self.until(|event| match event {
                Event::Incoming(Incoming::Publish(publish)) => Some(Ack::from_json(&publish.payload)),
                _ => None,
            });
            match tokio::time::timeout(Duration::from_secs(1), acked).await {
                Ok(ack) => return Ok(ack??),
                Err(_) => continue,
            }
        }
        anyhow::bail!("no acknowledgement came")
    }
}

fn frame(id: FrameId) -> Vec<u8> {
    let points = [1, 2].map(|value| NumberDataPoint {
        time_unix_nano: value as u64 * 1_000_000_000,
        value: Some(NumberValue::AsInt(value)),
        ..NumberDataPoint::default()
    });
    let metric = Metric {
        name: "a".to_owned(),
        data: Some(MetricData::Gauge(Gauge {
            data_points: points.to_vec(),
        })),
        ..Metric::default()
    };
    let scope = ScopeMetrics {
        scope: None,
        metrics: vec![metric],
    };
    let request = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: None,
            scope_metrics: vec![scope],
        }],
    };
    let raw = request.encode_to_vec();
    let body = zstd::bulk::compress(&raw, 3).expect("compression in memory does not fail");
    let raw_len = raw.len() as u32;
    TelemetryFrame {
        id,
        raw_len,
        body: &body,
    }
    .to_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_stored_once_and_acknowledged_each_time_it_comes() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    keys::init(&data.path().join("keys"))?;
    let server = Server::start(config(data.path())).await?;
    let (core, secret) = (&server.app().core, b"secret".to_vec());
    let hash = Digest::of(&secret);
    devices::create_token(core, hash, BTreeMap::new(), 1, 1000, By::new("test", 0)).await?;
    let enrolment = Enrolment {
        credential: Credential::Token(secret),
        device: "dev-1".parse()?,
        public_key: String::new(),
        platform: "x86_64-unknown-linux-gnu".parse()?,
        agent_version: "1".to_owned(),
        certificate_not_after_ms: 0,
    };
    devices::enroll(core, enrolment, 0).await?;

    let id = FrameId {
        boot_id: "1".repeat(32).parse()?,
        seq: 1,
    };
    let frame = frame(id.clone());
    let mut device = Device::connect(&server).await?;
    assert_eq!(device.send(&frame).await?.frames, std::slice::from_ref(&id));
    drop(device);
    server.shutdown().await;

    let server = Server::start(config(data.path())).await?;
    let mut device = Device::connect(&server).await?;
    assert_eq!(device.send(&frame).await?.frames, [id]);
    let totals = query::totals(&server.app().telemetry).await?;
    assert_eq!((totals.frames, totals.points, totals.rejected), (1, 2, 0));
    assert!(totals.duplicates >= 1, "{totals:?}");
    server.shutdown().await;
    Ok(())
}
