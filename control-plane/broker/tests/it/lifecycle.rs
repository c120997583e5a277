//! Start, restart, shutdown, and connections that are ended from outside.

use crate::{Rules, client, client::Client, config, connect, soon, start, start_default};
use rumqttc::{LastWill, QoS};
use skerry_broker::{Broker, BrokerConfig, BrokerError, Limits};
use std::{error::Error as _, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, net::TcpStream};

async fn start_error(config: BrokerConfig) -> BrokerError {
    match Broker::start(config, Arc::new(Rules)).await {
        Ok(_) => panic!("the broker started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn taken_port_is_named() {
    let broker = start_default().await;
    let taken = broker.local_addr();
    let error = start_error(BrokerConfig {
        bind: taken,
        ..config(Limits::default())
    })
    .await;
    assert_eq!(error.to_string(), format!("cannot listen for MQTT on {taken}"));
    match error {
        BrokerError::Bind { address, source } => {
            assert_eq!((address, source.kind()), (taken, io::ErrorKind::AddrInUse));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn storage_of_a_running_broker_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let stored = BrokerConfig {
        storage: Some(folder.path().to_owned()),
        ..config(Limits::default())
    };
    let _running = start(stored.clone()).await;
    let error = start_error(stored).await;
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    assert!(error.source().is_some());
}

#[tokio::test]
async fn empty_storage_path_is_not_the_working_directory() {
    let stored = BrokerConfig {
        storage: Some(PathBuf::new()),
        ..config(Limits::default())
    };
    assert!(matches!(start_error(stored).await, BrokerError::EmptyStoragePath));
}

#[tokio::test]
async fn restart_with_file_storage_keeps_retained_and_queued_messages() {
    let folder = tempfile::tempdir().unwrap();
    let stored = BrokerConfig {
        storage: Some(folder.path().to_owned()),
        ..config(Limits::default())
    };
    let broker = start(stored.clone()).await;
    let mut options = client::options(&broker, "a");
    options.set_clean_session(false);
    let mut device = Client::connect(options).await.unwrap();
    assert!(device.subscribe("d/a/desired").await);
    device.disconnect().await;
    let mut control = connect(&broker, "control").await;
    control.publish("d/a/desired", "queued").await.unwrap();
    control.retain("d/b/desired", "retained").await.unwrap();
    soon(broker.shutdown()).await;

    let broker = start(stored).await;
    let mut options = client::options(&broker, "a");
    options.set_clean_session(false);
    let mut device = Client::connect(options).await.unwrap();
    assert!(device.session_present);
    assert_eq!(device.text().await, "queued");
    let mut other = connect(&broker, "b").await;
    assert!(other.subscribe("d/b/desired").await);
    assert_eq!(other.text().await, "retained");
    soon(broker.shutdown()).await;
}

#[tokio::test]
async fn shutdown_closes_connected_and_silent_clients() {
    let broker = start(config(Limits {
        shutdown_deadline: Duration::from_secs(3600),
        ..Limits::default()
    }))
    .await;
    let address = broker.local_addr();
    let device = connect(&broker, "a").await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    // With a deadline of an hour, this ends in time only if every connection ends by itself.
    soon(broker.shutdown()).await;
    device.closed().await;
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap_or(0), 0);
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn shutdown_cuts_off_a_client_that_does_not_read() {
    let limits = Limits {
        shutdown_deadline: Duration::from_millis(100),
        client_channel_capacity: 8,
        ..Limits::default()
    };
    let broker = start(config(limits)).await;
    let mut stalled = connect(&broker, "a").await;
    assert!(stalled.subscribe("d/a/chunk").await);
    let mut control = connect(&broker, "control").await;
    // 25 MiB do not fit into the socket's buffers: the broker is in the middle of a write when it is stopped.
    for _ in 0..400 {
        control.publish_qos0("d/a/chunk", vec![0; 64 * 1024]).await.unwrap();
    }
    control.publish("d/b/desired", "all of them are routed").await.unwrap();
    soon(broker.shutdown()).await;
}

#[tokio::test]
async fn disconnected_client_loses_its_connection_and_leaves_its_last_will() {
    let broker = start_default().await;
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("d/+/status").await);
    let mut options = client::options(&broker, "a");
    options.set_last_will(LastWill::new("d/a/status", "gone", QoS::AtLeastOnce, true));
    let device = Client::connect(options).await.unwrap();
    let mut other = connect(&broker, "b").await;

    broker.disconnect().client("a");
    device.closed().await;
    assert_eq!(control.text().await, "gone");
    other.publish("d/b/status", "untouched").await.unwrap();
    assert_eq!(control.text().await, "untouched");
}

#[tokio::test]
async fn second_connection_with_the_same_id_takes_over() {
    let broker = start_default().await;
    let first = connect(&broker, "a").await;
    let mut second = connect(&broker, "a").await;
    first.closed().await;
    assert!(second.subscribe("d/a/desired").await);
    connect(&broker, "control")
        .await
        .publish("d/a/desired", "for the second")
        .await
        .unwrap();
    assert_eq!(second.text().await, "for the second");
}

#[tokio::test]
async fn connection_above_max_clients_is_closed_and_a_freed_place_is_reused() {
    let broker = start(config(Limits {
        max_clients: 2,
        ..Limits::default()
    }))
    .await;
    let silent = TcpStream::connect(broker.local_addr()).await.unwrap();
    let mut control = connect(&broker, "control").await;
    let mut refused = TcpStream::connect(broker.local_addr()).await.unwrap();
    assert_eq!(soon(refused.read(&mut [0; 1])).await.unwrap_or(0), 0);
    control.publish("d/a/desired", "served").await.unwrap();

    drop(silent);
    // The broker notices the closed socket in its own time; until then it refuses.
    let mut next = soon(async {
        loop {
            if let Ok(client) = Client::connect(client::options(&broker, "a")).await {
                return client;
            }
        }
    })
    .await;
    assert!(next.subscribe("d/a/desired").await);
}
