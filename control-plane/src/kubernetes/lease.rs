//! Which replica writes: the holder of a Lease (coordination.k8s.io/v1).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use weft_api::ROOT_NAMESPACE;

use crate::State;

const NAME: &str = "weft-control-plane";
const DURATION: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);
/// Changes that come together are written together.
const SETTLE: Duration = Duration::from_millis(200);
/// A holder looks this often even if nothing changed.
const LOOK: Duration = Duration::from_secs(30);

/// Tries to hold the Lease until the process ends.
pub fn campaign(client: Client, identity: String) -> watch::Receiver<bool> {
    let (leads, leader) = watch::channel(false);
    tokio::spawn(async move {
        let api: Api<Lease> = Api::namespaced(client, ROOT_NAMESPACE);
        let mut held_until = tokio::time::Instant::now();
        loop {
            let asked = tokio::time::Instant::now();
            match tokio::time::timeout(RENEW, attempt(&api, &identity)).await {
                Ok(Ok(true)) => held_until = asked + DURATION,
                Ok(Ok(false)) => held_until = asked,
                // Until then nobody else can have it.
                Ok(Err(error)) => tracing::debug!(%error, "the lease cannot be asked for"),
                Err(_) => {}
            }
            let leading = tokio::time::Instant::now() + RENEW < held_until;
            if leads.send_if_modified(|leads| std::mem::replace(leads, leading) != leading) {
                tracing::info!(leading, "the lease changed hands");
            }
            tokio::time::sleep(RENEW).await;
        }
    });
    leader
}

async fn attempt(api: &Api<Lease>, identity: &str) -> kube::Result<bool> {
    let now = Timestamp::now();
    let Some(mut lease) = api.get_opt(NAME).await? else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(spec(identity, now, None)),
        };
        return decided(api.create(&PostParams::default(), &lease).await);
    };
    let old = lease.spec.take().unwrap_or_default();
    let own = old.holder_identity.as_deref() == Some(identity);
    let renewed = old
        .renew_time
        .as_ref()
        .map_or(i64::MIN, |t| t.0.as_second());
    let life = i64::from(old.lease_duration_seconds.unwrap_or_default());
    if !own && old.holder_identity.is_some() && now.as_second() < renewed + life {
        return Ok(false);
    }
    lease.spec = Some(spec(identity, now, Some(&old)));
    decided(api.replace(NAME, &PostParams::default(), &lease).await)
}

/// Somebody else was faster: not an error.
fn decided(answer: kube::Result<Lease>) -> kube::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn spec(identity: &str, now: Timestamp, old: Option<&LeaseSpec>) -> LeaseSpec {
    let own = old.filter(|o| o.holder_identity.as_deref() == Some(identity));
    let changes = old.and_then(|o| o.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        acquire_time: own.map_or(Some(MicroTime(now)), |o| o.acquire_time.clone()),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if own.is_some() {
            changes
        } else {
            changes.saturating_add(1)
        }),
        ..LeaseSpec::default()
    }
}

/// Waits until this replica is to write, and something may have changed.
pub struct Turns {
    state: Arc<State>,
    changes: watch::Receiver<u64>,
    leader: watch::Receiver<bool>,
}

impl Turns {
    /// The first turn is at once.
    pub fn new(state: Arc<State>, leader: watch::Receiver<bool>) -> Self {
        let mut changes = state.changes.subscribe();
        changes.mark_changed();
        Self {
            state,
            changes,
            leader,
        }
    }

    /// The next turn.
    pub async fn next(&mut self) {
        let _ = self.state.ready.subscribe().wait_for(|ready| *ready).await;
        let _ = tokio::time::timeout(LOOK, self.changes.changed()).await;
        tokio::time::sleep(SETTLE).await;
        self.changes.mark_unchanged();
        let _ = self.leader.wait_for(|leads| *leads).await;
    }
}
