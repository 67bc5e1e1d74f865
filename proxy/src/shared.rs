//! What all threads of the proxy see: the configuration in force, swapped
//! whole, and the requests for what is not known yet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, mpsc, watch};
use weft_identity::{
    ALPN_HTTP, ALPN_TCP, PeerRule, SpiffeId, Svid, TlsError, TrustBundle, client_config,
    server_config,
};
use weft_proto::{NameAnswer, names};

use crate::config::{Destination, EndpointSlot, Inbound, Mesh};
use crate::telemetry::Registry;
use crate::telemetry::tap::Tap;
use crate::telemetry::traces::SpanSender;

/// How long a connection waits for the control plane to say where it leads.
const RESOLVE: Duration = Duration::from_secs(5);

/// A resource that may not be here yet.
pub struct Slot<T> {
    value: ArcSwapOption<T>,
    arrived: Notify,
    /// Seconds since the proxy's start, for letting unused ones lapse.
    used: AtomicU64,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            value: ArcSwapOption::empty(),
            arrived: Notify::new(),
            used: AtomicU64::new(0),
        }
    }
}

impl<T> Slot<T> {
    /// What it is now.
    pub fn get(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    /// Puts a value in force.
    pub fn set(&self, value: Option<Arc<T>>) {
        self.value.store(value);
        self.arrived.notify_waiters();
    }

    /// Waits for a value, for a bounded time.
    pub async fn wait(&self) -> Option<Arc<T>> {
        let arrived = async {
            loop {
                let notified = self.arrived.notified();
                if let Some(value) = self.get() {
                    return value;
                }
                notified.await;
            }
        };
        tokio::time::timeout(RESOLVE, arrived).await.ok()
    }
}

/// The proxy's identity, ready for use.
pub struct TlsMaterial {
    /// Grows with each renewal: connections of an older one take no new requests.
    pub generation: u64,
    /// Key and chain.
    pub svid: Svid,
    /// Roots.
    pub bundle: TrustBundle,
    /// For the called side.
    pub server: Arc<ServerConfig>,
    clients: Mutex<HashMap<(SpiffeId, bool), Arc<ClientConfig>>>,
}

impl TlsMaterial {
    /// Makes the configurations of an identity.
    pub fn new(generation: u64, svid: Svid, bundle: TrustBundle) -> Result<Self, TlsError> {
        Ok(Self {
            generation,
            server: server_config(&svid, &bundle, &[ALPN_HTTP, ALPN_TCP])?,
            svid,
            bundle,
            clients: Mutex::default(),
        })
    }

    /// For calling exactly this peer. `http`: the shared framing, else one
    /// opaque connection.
    pub fn client(&self, peer: &SpiffeId, http: bool) -> Result<Arc<ClientConfig>, TlsError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (peer.clone(), http);
        if let Some(config) = clients.get(&key) {
            return Ok(config.clone());
        }
        let alpn = if http { ALPN_HTTP } else { ALPN_TCP };
        let rule = PeerRule::Exactly(peer.clone());
        let config = client_config(Some(&self.svid), &self.bundle, rule, &[alpn])?;
        clients.insert(key, config.clone());
        Ok(config)
    }
}

/// What the workers ask of the control thread.
#[derive(Debug)]
pub enum Want {
    /// Subscribe to these names.
    Names(Vec<String>),
}

/// How far the proxy is on its way out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    #[default]
    Running,
    /// Asking callers to go elsewhere; still accepting.
    Draining,
    /// Told to end: that goes on for a while.
    Leaving,
    /// The application is gone.
    Stopping,
    /// So is every connection: what was counted last is told.
    Gone,
}

/// State shared by all threads.
pub struct Shared {
    /// The proxy's own pod.
    pub inbound: ArcSwap<Inbound>,
    /// Grows whenever `inbound` changes: open connections are looked at again.
    pub inbound_changes: watch::Sender<u64>,
    /// The whole mesh.
    pub mesh: ArcSwap<Mesh>,
    /// The proxy's identity; `None` until the first certificate.
    pub tls: ArcSwapOption<TlsMaterial>,
    destinations: Mutex<HashMap<String, Arc<Slot<Destination>>>>,
    names: Mutex<HashMap<String, Arc<Slot<NameAnswer>>>>,
    endpoints: Mutex<HashMap<String, EndpointSlot>>,
    wants: mpsc::UnboundedSender<Want>,
    /// All counters.
    pub registry: Registry,
    /// Who looks at requests.
    pub tap: Tap,
    /// Where spans go.
    pub spans: SpanSender,
    /// Own pod's configuration and identity are here.
    pub ready: AtomicBool,
    /// The redirect rules stand, as far as was asked.
    pub captured: AtomicBool,
    /// Whether, and how far, the proxy drains.
    pub phase: watch::Sender<Phase>,
    /// Connections open, for draining.
    pub open_connections: AtomicU64,
    /// The control plane's clock less this one, as it was last heard.
    pub clock_skew_millis: AtomicI64,
    start: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// An empty state. The receiver gets what workers want.
    pub fn new(spans: SpanSender) -> (Arc<Self>, mpsc::UnboundedReceiver<Want>) {
        let (wants, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            inbound: ArcSwap::default(),
            inbound_changes: watch::Sender::new(0),
            mesh: ArcSwap::default(),
            tls: ArcSwapOption::empty(),
            destinations: Mutex::default(),
            names: Mutex::default(),
            endpoints: Mutex::default(),
            wants,
            registry: Registry::default(),
            spans,
            ready: AtomicBool::new(false),
            captured: AtomicBool::new(false),
            tap: Tap::default(),
            phase: watch::Sender::new(Phase::Running),
            open_connections: AtomicU64::new(0),
            clock_skew_millis: AtomicI64::new(0),
            start: Instant::now(),
        };
        (Arc::new(shared), receiver)
    }

    fn slot<T>(&self, map: &Mutex<HashMap<String, Arc<Slot<T>>>>, name: String) -> Arc<Slot<T>> {
        let mut map = lock(map);
        if let Some(slot) = map.get(&name) {
            return slot.clone();
        }
        let slot = Arc::new(Slot::default());
        slot.used.store(self.seconds(), Ordering::Relaxed);
        map.insert(name.clone(), slot.clone());
        // A control thread that is gone means that the process ends.
        let _ = self.wants.send(Want::Names(vec![name]));
        slot
    }

    /// What an address leads to; subscribes if nobody has yet.
    pub fn destination(&self, address: SocketAddr) -> Arc<Slot<Destination>> {
        self.slot(&self.destinations, names::destination(address))
    }

    /// The addresses of a name; subscribes if nobody has yet.
    pub fn name(&self, host: &str) -> Arc<Slot<NameAnswer>> {
        self.slot(&self.names, names::name(host))
    }

    /// The endpoints of a resource name; empty until they come.
    pub fn endpoint_slot(&self, name: &str) -> EndpointSlot {
        lock(&self.endpoints)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    /// A destination slot by resource name, for the control thread.
    pub fn destination_by_name(&self, name: &str) -> Arc<Slot<Destination>> {
        lock(&self.destinations)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    /// A name slot by resource name, for the control thread.
    pub fn name_by_name(&self, name: &str) -> Arc<Slot<NameAnswer>> {
        lock(&self.names)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    /// Says that a slot is in use.
    pub fn touch<T>(&self, slot: &Slot<T>) {
        slot.used.store(self.seconds(), Ordering::Relaxed);
    }

    /// Forgets slots that nobody has used for `idle`, and returns their names.
    pub fn lapse(&self, idle: Duration) -> Vec<String> {
        let limit = self.seconds().saturating_sub(idle.as_secs());
        let mut lapsed = Vec::new();
        fn sweep<T>(
            map: &Mutex<HashMap<String, Arc<Slot<T>>>>,
            limit: u64,
            lapsed: &mut Vec<String>,
        ) {
            lock(map).retain(|name, slot| {
                // Held elsewhere: a worker still uses it.
                let keep =
                    slot.used.load(Ordering::Relaxed) >= limit || Arc::strong_count(slot) > 1;
                if !keep {
                    lapsed.push(name.clone());
                }
                keep
            });
        }
        sweep(&self.destinations, limit, &mut lapsed);
        sweep(&self.names, limit, &mut lapsed);
        lock(&self.endpoints).retain(|name, slot| {
            let keep = Arc::strong_count(slot) > 1;
            if !keep {
                lapsed.push(name.clone());
            }
            keep
        });
        lapsed
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    /// Puts the own pod's configuration in force, for open connections too.
    pub fn set_inbound(&self, inbound: Inbound) {
        self.inbound.store(Arc::new(inbound));
        self.inbound_changes.send_modify(|n| *n += 1);
    }

    /// Goes on to a phase, never back.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let further = to > *phase;
            *phase = (*phase).max(to);
            further
        });
    }

    /// Until the proxy has gone on to a phase.
    pub async fn reached(&self, wanted: Phase) {
        let mut phase = self.phase.subscribe();
        let _ = phase.wait_for(|phase| *phase >= wanted).await;
    }

    /// Whether the proxy has gone on to a phase.
    pub fn has_reached(&self, phase: Phase) -> bool {
        *self.phase.borrow() >= phase
    }

    /// What is known, for `/config`.
    pub fn describe(&self) -> serde_json::Value {
        let destinations: Vec<_> = lock(&self.destinations)
            .iter()
            .map(|(name, slot)| (name.clone(), slot.get().map(|d| describe_destination(&d))))
            .collect();
        let endpoints: HashMap<_, _> = lock(&self.endpoints)
            .iter()
            .map(|(name, slot)| {
                let list: Vec<_> = slot
                    .load()
                    .iter()
                    .map(|e| {
                        serde_json::json!({
                            "address": e.address.to_string(),
                            "identity": e.identity.as_ref().map(|i| i.as_str().to_owned()),
                            "workload": e.workload,
                        })
                    })
                    .collect();
                (name.clone(), list)
            })
            .collect();
        let tls = self.tls.load_full();
        serde_json::json!({
            "identity": tls.as_ref().map(|t| t.svid.identity.as_str().to_owned()),
            "certificateNotAfter": tls.as_ref().map(|t| unix(t.svid.not_after)),
            "trustDomain": self.mesh.load().trust_domain,
            "meshCIDRs": self.mesh.load().cidrs,
            "workload": self.inbound.load().workload.name,
            "inbound": format!("{:?}", self.inbound.load()),
            "destinations": destinations.into_iter().collect::<HashMap<_, _>>(),
            "endpoints": endpoints,
        })
    }
}

fn describe_destination(destination: &Destination) -> serde_json::Value {
    match destination {
        Destination::External => serde_json::json!({"kind": "External"}),
        Destination::Workload(e) => serde_json::json!({
            "kind": "Workload", "address": e.address.to_string(), "workload": e.workload,
        }),
        Destination::Service(s) => serde_json::json!({
            "kind": "Service", "service": &*s.name, "protocol": s.protocol.as_str_name(),
            "rules": s.rules.iter().map(|r| serde_json::json!({
                "route": &*r.route,
                "backends": r.backends.iter().map(|b| serde_json::json!({
                    "service": &*b.service, "weight": b.weight,
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        }),
    }
}

/// Seconds since the Unix epoch.
pub fn unix(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
