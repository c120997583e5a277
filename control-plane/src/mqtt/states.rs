//! Takes in what devices say of themselves: that they are there, and what they run.

use std::{sync::Arc, time::Instant};

use rumqttc::Publish;
use skerry_shared::{
    desired::{Reported, Status},
    id::DeviceId,
    schema::Envelope,
    topic::Channel,
};

use super::{hooks::Admitted, identities::Identities, malformed, repeat::Told};
use crate::{
    app::{App, Change, log_db, now_ms},
    devices::{self, Heard, Recorded, store},
};

/// What is known of devices while their words are taken in.
pub(super) struct StateDesk {
    app: Arc<App>,
    admitted: Option<Arc<Admitted>>,
    told: Arc<Told>,
    identities: Identities,
}

impl StateDesk {
    pub(super) fn new(app: Arc<App>, admitted: Option<Arc<Admitted>>, told: Arc<Told>) -> StateDesk {
        StateDesk {
            app,
            admitted,
            told,
            identities: Identities::default(),
        }
    }

    /// Takes in one message; what does not parse is dropped.
    pub(super) async fn hear(&mut self, device: DeviceId, channel: Channel, publish: &Publish) {
        let heard = if publish.retain {
            Heard::Retained
        } else {
            Heard::At(now_ms())
        };
        match channel {
            Channel::Status => match Status::from_json(&publish.payload) {
                Ok(status) => self.status(&device, &status, heard).await,
                Err(error) => malformed(&device, &error),
            },
            Channel::Reported => match Reported::from_json(&publish.payload) {
                Ok(reported) if reported.device == device => self.reported(reported, heard).await,
                Ok(_) => tracing::warn!(device.id = %device, "a device reports as another one"),
                Err(error) => malformed(&device, &error),
            },
            _ => return,
        }
        self.app.changes.send(Change::Device(device));
    }

    async fn status(&mut self, device: &DeviceId, status: &Status, heard: Heard) {
        let app = &self.app;
        let admitted = self.admitted.as_ref();
        let past = heard == Heard::Retained && admitted.is_some_and(|admitted| !admitted.contains(device));
        let online = status.online && !past;
        let stored = devices::record_connected(&app.core, device, online, heard).await;
        log_db(stored, "store a device's connection");
        if status.online && heard != Heard::Retained && self.identities.born(device, &status.boot_id) {
            tracing::warn!(device.id = %device, "two agents use one identity: revoke the device, or enrol one of them anew");
            let noted = devices::record_duplicate(&app.core, device, now_ms()).await;
            log_db(noted, "store that a device is there twice");
        }
    }

    async fn reported(&self, reported: Reported, heard: Heard) {
        let (app, device) = (&self.app, reported.device.clone());
        match devices::record_reported(&app.core, reported, heard).await {
            Ok(Recorded::Behind) if heard != Heard::Retained && self.told.is_due(&device, Instant::now()) => {
                let marked = app.core.write(move |conn| store::mark_unpublished(conn, &device)).await;
                log_db(marked, "mark a desired state unpublished");
                app.desired_changed.notify_one();
            }
            Ok(Recorded::Behind | Recorded::UpToDate | Recorded::Older) => {}
            Err(error) => tracing::warn!(device.id = %device, %error, "cannot store a reported state"),
        }
    }
}
