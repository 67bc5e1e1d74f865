//! One data thread: a current-thread runtime with its own listeners,
//! connections and counters. Workers share nothing but the configuration.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::clock;
use crate::config::{Backend, Destination, Endpoint, Inbound};
use crate::first::Speaker;
use crate::http::h2::{Connection, Dialect};
use crate::shared::{Phase, Shared, Slot};
use crate::telemetry::{Edge, EdgeKey, WorkerEdges};
use crate::upstream::{Balancer, LocalEndpoint};

/// For a peer that has been asked to leave to do so.
const GRACE: Duration = Duration::from_secs(3);
/// For an answer to ask it with.
const ANSWER: Duration = Duration::from_secs(1);
/// A connection that was not used for this long is not about to be: twice the
/// tick of the clock.
const UNUSED: Duration = Duration::from_secs(2);
/// A destination that was not used for this long is let go.
const LAPSE: Duration = Duration::from_secs(120);

/// A data thread's state.
pub struct Worker {
    /// What all threads see.
    pub shared: Arc<Shared>,
    /// Counters.
    pub edges: WorkerEdges,
    /// Calls that a change of policy may end.
    pub calls: ActiveCalls,
    /// Connections that wait for a request.
    pub idle: IdleConnections,
    /// HTTP/2 connections, whose peers are asked to leave in time.
    pub served: ServedConnections,
    endpoints: RefCell<HashMap<(SocketAddr, bool), Rc<LocalEndpoint>>>,
    destinations: RefCell<HashMap<SocketAddr, Rc<LocalDestination>>>,
    balancers: RefCell<BTreeMap<usize, Rc<Balancer>>>,
    random: Cell<u64>,
}

/// A destination, and what was learned about it here.
pub struct LocalDestination {
    slot: Arc<Slot<Destination>>,
    used: Cell<Instant>,
    /// Who spoke first the last time, on a port that declares nothing.
    pub first_speaker: Cell<Speaker>,
    edges: RefCell<Vec<(EdgeMark, Rc<Edge>)>>,
}

/// Tells edges of one destination apart without comparing texts.
#[derive(Clone, Copy, PartialEq, Eq)]
struct EdgeMark {
    rule: *const u8,
    backend: *const u8,
    endpoint: *const LocalEndpoint,
    protocol: &'static str,
}

impl Worker {
    /// A worker without connections.
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            edges: WorkerEdges::default(),
            calls: ActiveCalls::default(),
            idle: IdleConnections::default(),
            served: ServedConnections::default(),
            endpoints: RefCell::default(),
            destinations: RefCell::default(),
            balancers: RefCell::default(),
            random: Cell::new(rand::random::<u64>() | 1),
        })
    }

    /// Xorshift: for choices that nobody must be unable to guess.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }

    /// Uniform over `0..n`; 0 for an empty range.
    pub fn random_below(&self, n: usize) -> usize {
        ((u128::from(self.random()) * n as u128) >> 64) as usize
    }

    /// The local state of an endpoint.
    pub fn endpoint(&self, endpoint: &Endpoint) -> Rc<LocalEndpoint> {
        let mut endpoints = self.endpoints.borrow_mut();
        let key = (endpoint.address, endpoint.identity.is_some());
        if let Some(local) = endpoints.get(&key)
            && local.identity == endpoint.identity
            && local.workload == endpoint.workload
        {
            return local.clone();
        }
        let Endpoint {
            address,
            identity,
            workload,
            namespace,
            ..
        } = endpoint;
        let local = LocalEndpoint::new(*address, identity.clone(), workload, namespace);
        if let Some(former) = endpoints.insert(key, local.clone()) {
            former.retire();
        }
        local
    }

    /// An endpoint that is known by its address.
    pub fn known_endpoint(&self, address: SocketAddr) -> Option<Rc<LocalEndpoint>> {
        let endpoints = self.endpoints.borrow();
        let meshed = endpoints.get(&(address, true));
        meshed.or_else(|| endpoints.get(&(address, false))).cloned()
    }

    /// The application behind this proxy, at the address that was called.
    pub fn application(&self, address: SocketAddr) -> Rc<LocalEndpoint> {
        let key = (address, false);
        if let Some(local) = self.endpoints.borrow().get(&key) {
            return local.clone();
        }
        let local = LocalEndpoint::new(address, None, "", "");
        self.endpoints.borrow_mut().insert(key, local.clone());
        local
    }

    /// What an address leads to; waits for the control plane a bounded time.
    pub async fn destination(
        &self,
        address: SocketAddr,
    ) -> Option<(Rc<LocalDestination>, Arc<Destination>)> {
        let known = self.destinations.borrow().get(&address).cloned();
        let local = known.unwrap_or_else(|| {
            let local = Rc::new(LocalDestination {
                slot: self.shared.destination(address),
                used: Cell::new(clock::coarse()),
                first_speaker: Cell::new(Speaker::Unknown),
                edges: RefCell::default(),
            });
            self.destinations
                .borrow_mut()
                .insert(address, local.clone());
            local
        });
        local.used.set(clock::coarse());
        let destination = match local.slot.get() {
            Some(destination) => destination,
            None => local.slot.wait().await?,
        };
        Some((local, destination))
    }

    /// The balancer of a backend; `None` if its reference does not resolve.
    pub fn balancer(&self, backend: &Backend) -> Option<Rc<Balancer>> {
        let slot = backend.endpoints.as_ref()?;
        // Its place tells a slot from others, as long as the balancer holds it.
        let place = Arc::as_ptr(slot).addr();
        let mut balancers = self.balancers.borrow_mut();
        let balancer = balancers
            .entry(place)
            .or_insert_with(|| Balancer::new(slot.clone()));
        Some(balancer.clone())
    }

    /// Once a second, until the process ends: counters, dead connections, what
    /// is no longer used.
    pub async fn tick(self: Rc<Self>) {
        let mut interval = tokio::time::interval(Duration::from_secs(1));
        loop {
            interval.tick().await;
            let now = Instant::now();
            clock::set(now);
            if self.idle.phase.get() >= Phase::Draining {
                self.idle.look_again();
            }
            self.edges.flush(&self.shared.registry);
            let endpoints: Vec<_> = self.endpoints.borrow().values().cloned().collect();
            for endpoint in endpoints {
                endpoint.tick(now);
            }
            self.destinations.borrow_mut().retain(|_, local| {
                let keep =
                    now.duration_since(local.used.get()) < LAPSE || Rc::strong_count(local) > 1;
                if keep {
                    self.shared.touch(&local.slot);
                }
                keep
            });
            crate::buffers::release_bulk();
            self.balancers
                .borrow_mut()
                .retain(|_, b| Rc::strong_count(b) > 1 || b.is_used(now, LAPSE));
            self.endpoints
                .borrow_mut()
                .retain(|_, e| Rc::strong_count(e) > 1 || !e.is_unused());
        }
    }

    /// Asks the peers of connections to leave when it is time.
    pub async fn watch_phase(self: Rc<Self>) {
        for now in [Phase::Draining, Phase::Stopping] {
            self.shared.reached(now).await;
            self.idle.enter(now);
            for (_, (leaves, connection)) in self.served.connections.borrow().iter() {
                if *leaves == now {
                    tokio::task::spawn_local(leave(connection.clone()));
                }
            }
        }
    }

    /// Looks at open calls again whenever the own pod's configuration changes.
    pub async fn watch_policy(self: Rc<Self>) {
        let mut changes = self.shared.inbound_changes.subscribe();
        while changes.changed().await.is_ok() {
            let inbound = self.shared.inbound.load_full();
            self.calls.look_again(&inbound);
        }
    }
}

impl LocalDestination {
    /// What it is now: routes change while a connection is open.
    pub fn current(&self) -> Option<Arc<Destination>> {
        self.used.set(clock::coarse());
        self.slot.get()
    }

    /// The counters for a request by this rule and backend to this endpoint.
    pub fn edge(
        &self,
        rule: &str,
        backend: &str,
        endpoint: Option<&Rc<LocalEndpoint>>,
        protocol: &'static str,
        make: impl FnOnce() -> Rc<Edge>,
    ) -> Rc<Edge> {
        let mark = EdgeMark {
            rule: rule.as_ptr(),
            backend: backend.as_ptr(),
            endpoint: endpoint.map_or(std::ptr::null(), Rc::as_ptr),
            protocol,
        };
        let mut edges = self.edges.borrow_mut();
        if let Some((_, edge)) = edges.iter().find(|(m, edge)| {
            *m == mark
                && &*edge.key().route == rule
                && endpoint.is_none_or(|e| *edge.key().destination == *e.workload)
        }) {
            return edge.clone();
        }
        if edges.len() >= 64 {
            edges.clear();
        }
        let edge = make();
        edges.push((mark, edge.clone()));
        edge
    }
}

/// What is known of the caller and the callee of an edge.
pub fn outbound_key(
    shared: &Shared,
    service: &Arc<str>,
    route: &Arc<str>,
    backend: &Arc<str>,
    endpoint: Option<&LocalEndpoint>,
    protocol: &'static str,
) -> EdgeKey {
    let inbound = shared.inbound.load();
    let own = &inbound.workload;
    let identity = endpoint.and_then(|e| e.identity.as_ref());
    EdgeKey {
        outbound: true,
        source: own.owner.as_str().into(),
        source_namespace: own.namespace.as_str().into(),
        source_identity: own.spiffe_id.as_str().into(),
        destination: endpoint
            .map(|e| e.workload.as_str())
            .unwrap_or_default()
            .into(),
        destination_namespace: endpoint
            .map(|e| e.namespace.as_str())
            .unwrap_or_default()
            .into(),
        destination_identity: identity.map(|i| i.as_str()).unwrap_or_default().into(),
        service: service.clone(),
        backend: backend.clone(),
        route: route.clone(),
        protocol,
        mtls: identity.is_some(),
    }
}

/// Calls that last: connections and streams, looked at again when a policy
/// changes.
#[derive(Default)]
pub struct ActiveCalls {
    calls: RefCell<Slab<ActiveCall>>,
}

struct ActiveCall {
    allowed: Box<dyn Fn(&Inbound) -> bool>,
    ended: Rc<Cell<bool>>,
    waker: Option<Waker>,
}

/// A call's place among the active ones, until it is dropped.
pub struct CallGuard {
    worker: Rc<Worker>,
    key: usize,
    ended: Rc<Cell<bool>>,
}

impl ActiveCalls {
    /// Registers a call; `allowed` says whether a configuration lets it go on.
    pub fn register(worker: &Rc<Worker>, allowed: Box<dyn Fn(&Inbound) -> bool>) -> CallGuard {
        let ended = Rc::new(Cell::new(false));
        let call = ActiveCall {
            allowed,
            ended: ended.clone(),
            waker: None,
        };
        let key = worker.calls.calls.borrow_mut().insert(call);
        CallGuard {
            worker: worker.clone(),
            key,
            ended,
        }
    }

    fn look_again(&self, inbound: &Inbound) {
        for (_, call) in self.calls.borrow_mut().iter_mut() {
            if !(call.allowed)(inbound) {
                call.ended.set(true);
                if let Some(waker) = call.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl CallGuard {
    /// Whether the call must end now; otherwise wakes the task when it must.
    pub fn must_end(&self, waker: &Waker) -> bool {
        if !self.ended.get()
            && let Some(call) = self.worker.calls.calls.borrow_mut().get_mut(self.key)
        {
            match &mut call.waker {
                Some(known) if known.will_wake(waker) => {}
                slot => *slot = Some(waker.clone()),
            }
        }
        self.ended.get()
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.worker.calls.calls.borrow_mut().try_remove(self.key);
    }
}

/// Connections of HTTP/2 and of the mesh's framing that are served.
#[derive(Default)]
pub struct ServedConnections {
    connections: RefCell<Slab<(Phase, Rc<Connection>)>>,
}

/// A connection's place among those that are served, until it is dropped.
pub struct ServedGuard {
    worker: Rc<Worker>,
    key: usize,
}

impl ServedConnections {
    /// Adds a connection, whose peer is asked to leave in a phase: at once, if
    /// that has begun.
    pub fn register(
        &self,
        worker: &Rc<Worker>,
        leaves: Phase,
        connection: Rc<Connection>,
    ) -> ServedGuard {
        if worker.shared.has_reached(leaves) {
            let connection = connection.clone();
            tokio::task::spawn_local(leave(connection));
        }
        ServedGuard {
            worker: worker.clone(),
            key: self.connections.borrow_mut().insert((leaves, connection)),
        }
    }
}

impl Drop for ServedGuard {
    fn drop(&mut self) {
        self.worker
            .served
            .connections
            .borrow_mut()
            .try_remove(self.key);
    }
}

/// Both phases of a shutdown (RFC 9113 section 6.8). A peer that knows the first
/// ends the connection when it has its answers. The second is for those that do
/// not, and comes late: no answer to a PING tells that nothing is on its way
/// (h2 sends it before requests that wait to be sent).
///
/// Many clients lose a request that they begin when GOAWAY reaches them, though
/// it could be sent again, hyper's among them. Those that are not proxies of the
/// mesh are told together with the end of an answer, when they have just been
/// served (ARCHITECTURE.md says what that saves).
async fn leave(connection: Rc<Connection>) {
    if connection.dialect() == Dialect::Standard {
        connection.announce_shutdown_with_answer();
        tokio::time::sleep(ANSWER).await;
    }
    connection.announce_shutdown();
    tokio::time::sleep(GRACE).await;
    connection.shutdown();
}

/// Connections of HTTP/1 between requests. Each answer of a proxy that drains
/// ends its connection; one that is not used for a while then ends by itself,
/// before the application is gone, and all do when the proxy stops.
#[derive(Default)]
pub struct IdleConnections {
    phase: Cell<Phase>,
    /// `None` in the first one.
    phase_began: Cell<Option<Instant>>,
    wakers: RefCell<Slab<Waker>>,
}

/// A connection's place among the idle ones, until it is dropped.
pub struct IdleGuard<'a> {
    idle: &'a IdleConnections,
    key: Option<usize>,
    leaves: Phase,
    since: Instant,
}

impl IdleConnections {
    /// A place for a connection whose peer is to leave in a phase.
    pub fn register(&self, leaves: Phase) -> IdleGuard<'_> {
        IdleGuard {
            idle: self,
            key: None,
            leaves,
            since: clock::coarse(),
        }
    }

    /// A phase has begun.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_began.set(Some(Instant::now()));
        self.look_again();
    }

    /// Has all look again whether they must end.
    fn look_again(&self) {
        for (_, waker) in self.wakers.borrow().iter() {
            waker.wake_by_ref();
        }
    }
}

impl IdleGuard<'_> {
    /// A request has been answered: the next is waited for.
    pub fn answered(&mut self) {
        self.since = clock::coarse();
    }

    /// Whether the connection must end; otherwise the task is woken to look
    /// again.
    pub fn must_end(&mut self, waker: &Waker) -> bool {
        let mut wakers = self.idle.wakers.borrow_mut();
        match self.key.and_then(|key| wakers.get_mut(key)) {
            Some(known) => known.clone_from(waker),
            None => self.key = Some(wakers.insert(waker.clone())),
        }
        let phase = self.idle.phase.get();
        phase >= Phase::Stopping || (phase >= self.leaves && self.is_unused())
    }

    /// Whether no request has come for a while, all of it in this phase.
    fn is_unused(&self) -> bool {
        let began = self.idle.phase_began.get();
        let since = began.map_or(self.since, |began| began.max(self.since));
        clock::coarse().duration_since(since) >= UNUSED
    }
}

impl Drop for IdleGuard<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.idle.wakers.borrow_mut().try_remove(key);
        }
    }
}

/// The pod's own addresses, as its interfaces had them at the start.
pub fn own_addresses() -> Vec<IpAddr> {
    static OWN: std::sync::OnceLock<Vec<IpAddr>> = std::sync::OnceLock::new();
    OWN.get_or_init(|| {
        nix::ifaddrs::getifaddrs()
            .map(|all| {
                all.filter_map(|i| i.address)
                    .filter_map(|a| {
                        a.as_sockaddr_in()
                            .map(|v4| IpAddr::from(v4.ip()))
                            .or_else(|| a.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
                    })
                    .filter(|ip| !ip.is_loopback())
                    .collect()
            })
            .unwrap_or_default()
    })
    .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_connections_end_when_they_were_not_used_for_a_while_since_the_proxy_drains() {
        let idle = IdleConnections::default();
        let waker = Waker::noop();
        let start = Instant::now();
        clock::set(start - UNUSED * 2);
        let mut caller = idle.register(Phase::Draining);
        let mut application = idle.register(Phase::Stopping);
        clock::set(start);
        assert!(!caller.must_end(waker), "the proxy does not drain");
        idle.enter(Phase::Draining);
        clock::set(start + UNUSED / 2);
        assert!(!caller.must_end(waker), "it has just begun to drain");
        clock::set(start + UNUSED * 3);
        assert!(caller.must_end(waker));
        assert!(!application.must_end(waker), "it still makes calls");
        caller.answered();
        assert!(!caller.must_end(waker), "it has just been used");
        idle.enter(Phase::Stopping);
        assert!(caller.must_end(waker) && application.must_end(waker));
    }
}
