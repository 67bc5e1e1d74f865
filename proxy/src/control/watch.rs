//! The stream from the control plane: what it says is checked, put in force
//! and acknowledged, or refused with the reason while the last good one stays.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_identity::{ALPN_GRPC, PeerRule, client_config};
use weft_proto as proto;
use weft_proto::discovery_client::DiscoveryClient;
use weft_proto::watch_request::Message as Say;
use weft_proto::watch_response::Message as Hear;
use weft_proto::{Resource, WatchRequest, names, resource};

use super::cache::Cache;
use super::channel::connect;
use super::identity::rebuild;
use crate::config::{Destination, Endpoint, Inbound, Mesh, Refused};
use crate::settings::Settings;
use crate::shared::{Phase, Shared, Want, unix};

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A control plane that has said nothing for this long is taken for lost; it
/// says something every five seconds.
const SILENCE: Duration = Duration::from_secs(20);
const REPORT: Duration = Duration::from_secs(2);
/// What has changed is in the cache after this time.
const FLUSH: Duration = Duration::from_millis(200);
/// Subscriptions that nobody used for this long lapse.
const LAPSE: Duration = Duration::from_secs(600);

/// What this proxy understands, told in the first message.
pub const CAPABILITIES: [&str; 2] = ["endpoint-delta", "trace"];

/// Follows the control plane until every connection is gone, and tells it what
/// was counted last.
pub async fn watch(
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    cache: Cache,
    mut wants: mpsc::UnboundedReceiver<Want>,
) {
    let mut state = State {
        shared,
        held: HashMap::new(),
        wanted: [names::INBOUND, names::MESH].map(str::to_owned).into(),
        dirty: false,
    };
    for resource in cache.resources() {
        let name = resource.name.clone();
        if let Err(refused) = state.apply(resource) {
            tracing::warn!(name, reason = %refused, "a cached resource cannot be used");
        }
    }
    let mut backoff = MIN_BACKOFF;
    // Without an identity there is nobody to talk to yet, and nothing to tell of.
    while state.shared.tls.load().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loop {
        let session = session(&mut state, &settings, &cache, &mut wants, &mut backoff).await;
        state.flush(&cache);
        if let Err(error) = session {
            let told = match error.downcast_ref::<tonic::Status>() {
                Some(status) => proto::brief(status),
                None => format!("{error:#}"),
            };
            tracing::warn!(error = told, "the control plane is away");
        }
        let pause = tokio::time::sleep(backoff.mul_f64(0.5 + rand::random::<f64>()));
        backoff = (backoff * 2).min(MAX_BACKOFF);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                () = state.shared.reached(Phase::Gone) => return,
                Some(Want::Names(names)) = wants.recv() => state.wanted.extend(names),
            }
        }
    }
}

struct State {
    shared: Arc<Shared>,
    /// What is in force, by name.
    held: HashMap<String, Resource>,
    wanted: HashSet<String>,
    /// The cache is behind.
    dirty: bool,
}

/// One connection to the control plane.
async fn session(
    state: &mut State,
    settings: &Settings,
    cache: &Cache,
    wants: &mut mpsc::UnboundedReceiver<Want>,
    backoff: &mut Duration,
) -> anyhow::Result<()> {
    let tls = state.shared.tls.load_full().context("no certificate yet")?;
    let rule = PeerRule::Exactly(settings.control_plane_identity.parse()?);
    let config = client_config(Some(&tls.svid), &tls.bundle, rule, &[ALPN_GRPC])?;
    let channel = connect(&settings.control_plane, config).await?;
    let (say, requests) = mpsc::channel(64);
    say.send(message(Say::Hello(state.hello(settings)))).await?;
    let mut responses = DiscoveryClient::new(channel)
        .watch(ReceiverStream::new(requests))
        .await?
        .into_inner();
    let mut report = tokio::time::interval(REPORT);
    let mut flush = tokio::time::interval(FLUSH);
    let shared = state.shared.clone();
    loop {
        tokio::select! {
            () = shared.reached(Phase::Gone) => {
                say.send(message(Say::Report(state.report()))).await?;
                // The other side ends its half when it has taken everything.
                drop(say);
                while responses.message().await?.is_some() {}
                return Ok(());
            }
            heard = tokio::time::timeout(SILENCE, responses.message()) => {
                let heard = heard.context("it has gone silent")??.context("it ended the stream")?;
                *backoff = MIN_BACKOFF;
                if let Some(answer) = state.hear(heard) {
                    say.send(message(answer)).await?;
                }
            }
            Some(Want::Names(names)) = wants.recv() => {
                let names: Vec<_> = names.into_iter().filter(|n| state.wanted.insert(n.clone())).collect();
                if !names.is_empty() {
                    say.send(message(Say::Subscribe(proto::Subscribe { names }))).await?;
                }
            }
            _ = flush.tick() => state.flush(cache),
            _ = report.tick() => {
                let lapsed = state.lapse();
                if !lapsed.is_empty() {
                    say.send(message(Say::Unsubscribe(proto::Unsubscribe { names: lapsed }))).await?;
                }
                say.send(message(Say::Report(state.report()))).await?;
            }
        }
        let generation = state.shared.tls.load().as_ref().map(|t| t.generation);
        if generation.is_some_and(|g| g != tls.generation) && say.capacity() == 64 {
            // The stream is made anew with the new certificate or roots, in order.
            tracing::info!("renewing the connection to the control plane");
            return Ok(());
        }
    }
}

fn message(message: Say) -> WatchRequest {
    WatchRequest {
        message: Some(message),
    }
}

impl State {
    fn hello(&self, settings: &Settings) -> proto::Hello {
        proto::Hello {
            proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            namespace: settings.namespace.clone(),
            pod: settings.pod.clone(),
            held: self
                .held
                .values()
                .map(|r| proto::Held {
                    name: r.name.clone(),
                    version: r.version.clone(),
                })
                .collect(),
            names: self.wanted.iter().cloned().collect(),
        }
    }

    fn report(&self) -> proto::Report {
        let tls = self.shared.tls.load();
        let at = |time: Option<std::time::SystemTime>| time.map_or(0, |t| unix(t) as i64);
        proto::Report {
            edges: self.shared.registry.take_report(),
            certificate_not_after: at(tls.as_ref().map(|t| t.svid.not_after)),
            certificate_not_before: at(tls.as_ref().map(|t| t.svid.not_before)),
            certificate_issuer: tls.as_ref().map(|t| t.svid.issuer()).unwrap_or_default(),
            clock_skew_millis: self.shared.clock_skew_millis.load(Ordering::Relaxed),
        }
    }

    /// Brings the cache up to date.
    fn flush(&mut self, cache: &Cache) {
        if std::mem::take(&mut self.dirty) {
            cache.put_resources(self.held.values());
        }
    }

    /// Forgets what nobody uses.
    fn lapse(&mut self) -> Vec<String> {
        let lapsed = self.shared.lapse(LAPSE);
        for name in &lapsed {
            self.wanted.remove(name);
            self.dirty |= self.held.remove(name).is_some();
        }
        lapsed
    }

    fn hear(&mut self, heard: proto::WatchResponse) -> Option<Say> {
        match heard.message? {
            Hear::Welcome(welcome) => {
                tracing::info!(
                    version = welcome.control_plane_version,
                    "connected to the control plane"
                );
                None
            }
            Hear::Heartbeat(heartbeat) => {
                rebuild(&self.shared, &self.shared.mesh.load().bundle);
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let now = now.unwrap_or_default().as_millis() as i64;
                let skew = heartbeat.unix_millis.saturating_sub(now);
                let before = self.shared.clock_skew_millis.swap(skew, Ordering::Relaxed);
                let far = |skew: i64| skew.unsigned_abs() > proto::MAX_CLOCK_SKEW_MILLIS;
                if far(skew) && !far(before) {
                    tracing::warn!(
                        skew_seconds = skew / 1000,
                        "this clock and the control plane's differ"
                    );
                }
                None
            }
            Hear::Update(update) => Some(self.update(update)),
        }
    }

    /// Endpoints first, then what refers to them: nothing points to nowhere.
    fn update(&mut self, mut update: proto::Update) -> Say {
        let number = update.number;
        update.resources.sort_by_key(|r| match &r.body {
            Some(resource::Body::Mesh(_)) => 0,
            Some(resource::Body::Endpoints(_) | resource::Body::EndpointDelta(_)) => 1,
            _ => 2,
        });
        let mut refused = Vec::new();
        for resource in update.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            if let Err(reason) = self.apply(resource) {
                tracing::warn!(name, %reason, "refused; the last good one stays in force");
                let reason = reason.to_string();
                refused.push(proto::RefusedResource {
                    name,
                    version,
                    reason,
                });
            }
        }
        if refused.is_empty() {
            Say::Ack(proto::Ack { number })
        } else {
            Say::Refusal(proto::Refusal {
                number,
                resources: refused,
            })
        }
    }

    fn apply(&mut self, mut resource: Resource) -> Result<(), Refused> {
        use resource::Body;
        let shared = self.shared.clone();
        match resource.body.take() {
            Some(Body::Mesh(mesh)) => {
                let compiled = Mesh::compile(&mesh)?;
                rebuild(&shared, &compiled.bundle);
                shared.mesh.store(Arc::new(compiled));
                resource.body = Some(Body::Mesh(mesh));
            }
            Some(Body::Inbound(inbound)) => {
                shared.set_inbound(Inbound::compile(&inbound)?);
                resource.body = Some(Body::Inbound(inbound));
            }
            Some(Body::Destination(destination)) => {
                let compiled =
                    Destination::compile(&destination, &mut |name| shared.endpoint_slot(name))?;
                shared
                    .destination_by_name(&resource.name)
                    .set(Some(Arc::new(compiled)));
                resource.body = Some(Body::Destination(destination));
            }
            Some(Body::NameAnswer(answer)) => {
                shared
                    .name_by_name(&resource.name)
                    .set(Some(Arc::new(answer.clone())));
                resource.body = Some(Body::NameAnswer(answer));
            }
            Some(Body::Endpoints(set)) => {
                self.put_endpoints(&resource.name, &set)?;
                resource.body = Some(Body::Endpoints(set));
            }
            Some(Body::EndpointDelta(delta)) => {
                let set = self.changed(&resource.name, delta)?;
                self.put_endpoints(&resource.name, &set)?;
                resource.body = Some(Body::Endpoints(set));
            }
            None => {
                return Err(Refused(
                    "a resource of a kind that this proxy does not know".into(),
                ));
            }
        }
        self.held.insert(resource.name.clone(), resource);
        self.dirty = true;
        if self.held.contains_key(names::INBOUND) && self.held.contains_key(names::MESH) {
            shared.ready.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn put_endpoints(&self, name: &str, set: &proto::EndpointSet) -> Result<(), Refused> {
        let endpoints = set
            .endpoints
            .iter()
            .map(|e| Endpoint::compile(e).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        self.shared.endpoint_slot(name).store(Arc::new(endpoints));
        Ok(())
    }

    fn changed(
        &self,
        name: &str,
        delta: proto::EndpointDelta,
    ) -> Result<proto::EndpointSet, Refused> {
        let base = self.held.get(name).filter(|r| r.version == delta.base);
        let Some(Resource {
            body: Some(resource::Body::Endpoints(set)),
            ..
        }) = base
        else {
            return Err(Refused(
                "the base of this change is not held: send all of it".into(),
            ));
        };
        let gone = |e: &proto::Endpoint| {
            delta.removed.contains(&e.address)
                || delta.upserted.iter().any(|u| u.address == e.address)
        };
        let mut endpoints: Vec<_> = set.endpoints.iter().filter(|e| !gone(e)).cloned().collect();
        endpoints.extend(delta.upserted);
        endpoints.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(proto::EndpointSet { endpoints })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::traces::SpanSender;

    #[test]
    fn a_wrong_clock_is_measured() {
        let (shared, _wants) = Shared::new(SpanSender::new().0);
        let mut state = State {
            shared: shared.clone(),
            held: HashMap::new(),
            wanted: HashSet::new(),
            dirty: false,
        };
        let now = unix(std::time::SystemTime::now()) as i64 * 1000;
        for ahead in [0, 90_000, -90_000] {
            let heartbeat = proto::Heartbeat {
                unix_millis: now + ahead,
            };
            state.hear(proto::WatchResponse {
                message: Some(Hear::Heartbeat(heartbeat)),
            });
            let skew = shared.clock_skew_millis.load(Ordering::Relaxed);
            assert!((skew - ahead).abs() < 5000, "{skew} for {ahead}");
            assert_eq!(state.report().clock_skew_millis, skew);
        }
    }
}
