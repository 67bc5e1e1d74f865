//! One endpoint as a worker sees it: how it has been doing, and the
//! connections to it that are warm.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use weft_identity::SpiffeId;

use super::connect::{ConnectError, connect_mesh, connect_plain};
use crate::clock;
use crate::http::h1::Message;
use crate::http::h2::{Connection, Dialect, Role, drive};
use crate::http::head::Version;
use crate::shared::Shared;

/// Weight of the past in the mean latency fades with this time constant.
const DECAY: Duration = Duration::from_secs(10);
/// Latency assumed of an endpoint that was never called.
const INITIAL_LATENCY: f64 = 0.001;
/// After a failure an endpoint is left out for this long, doubled each time.
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long an endpoint that announced its end is left out: its removal from
/// the service arrives in this time.
const LEAVING: Duration = Duration::from_secs(5);
/// Idle HTTP/1 connections kept for each endpoint.
const MAX_IDLE: usize = 256;
/// An idle connection is not used after this time...
const IDLE: Duration = Duration::from_secs(30);
/// ...and not for a request that could not be sent again after this: a server
/// may be closing it at the same moment.
const IDLE_UNSAFE: Duration = Duration::from_millis(800);

/// A connection on which a request can be sent.
pub enum Link {
    /// For this request alone. `reused`: it has carried others.
    H1 {
        /// The connection.
        message: Box<Message>,
        /// It may turn out to be closed.
        reused: bool,
    },
    /// Shared with others.
    H2(Rc<Connection>),
}

enum Mesh {
    None,
    Connecting(Rc<Attempt>),
    Ready(Rc<Connection>, u64),
}

#[derive(Default)]
struct Attempt {
    done: Notify,
    error: RefCell<Option<ConnectError>>,
}

/// An endpoint, its health and its connections.
pub struct LocalEndpoint {
    /// The pod's own address.
    pub address: SocketAddr,
    /// What it must prove; `None`: called in plaintext.
    pub identity: Option<SpiffeId>,
    /// The workload's name.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    latency: Cell<f64>,
    measured: Cell<Instant>,
    in_flight: Cell<u32>,
    paused_until: Cell<Option<Instant>>,
    pause: Cell<Duration>,
    mesh: RefCell<Mesh>,
    idle: RefCell<Vec<(Box<Message>, Instant)>>,
    h2: RefCell<Vec<Rc<Connection>>>,
}

/// Counts a request in flight until it is dropped.
pub struct InFlight {
    endpoint: Rc<LocalEndpoint>,
    start: Instant,
}

impl InFlight {
    /// The request was answered: its latency counts.
    pub fn answered(&self) {
        self.endpoint.observe(self.start, Instant::now());
        self.endpoint.pause.set(PAUSE);
        self.endpoint.paused_until.set(None);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let endpoint = &self.endpoint;
        endpoint
            .in_flight
            .set(endpoint.in_flight.get().saturating_sub(1));
    }
}

impl LocalEndpoint {
    /// An endpoint without connections.
    pub fn new(
        address: SocketAddr,
        identity: Option<SpiffeId>,
        workload: &str,
        namespace: &str,
    ) -> Rc<Self> {
        Rc::new(Self {
            address,
            identity,
            workload: workload.to_owned(),
            namespace: namespace.to_owned(),
            latency: Cell::new(INITIAL_LATENCY),
            measured: Cell::new(Instant::now()),
            in_flight: Cell::new(0),
            paused_until: Cell::new(None),
            pause: Cell::new(PAUSE),
            mesh: RefCell::new(Mesh::None),
            idle: RefCell::default(),
            h2: RefCell::default(),
        })
    }

    /// Counts a request.
    pub fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight {
            endpoint: self.clone(),
            start: Instant::now(),
        }
    }

    /// Peak-EWMA: a slow answer counts at once, a fast one bit by bit.
    fn observe(&self, begun: Instant, now: Instant) {
        let seconds = now.duration_since(begun).as_secs_f64();
        let elapsed = now.duration_since(self.measured.replace(now)).as_secs_f64();
        let old = self.latency.get();
        let new = if seconds > old {
            seconds
        } else {
            let keep = (-elapsed / DECAY.as_secs_f64()).exp();
            old * keep + seconds * (1.0 - keep)
        };
        self.latency.set(new);
    }

    /// Expected wait of one more request, in seconds.
    pub fn cost(&self) -> f64 {
        self.latency.get() * f64::from(self.in_flight.get() + 1)
    }

    /// It failed: leave it out for a while.
    pub fn failed(&self) {
        let pause = self.pause.get();
        self.paused_until.set(Some(Instant::now() + pause));
        self.pause.set((pause * 2).min(MAX_PAUSE));
    }

    /// Whether it ought to get requests: it has not just failed, and has not
    /// said that it is going away.
    pub fn is_available(&self, now: Instant) -> bool {
        if self.paused_until.get().is_some_and(|until| now < until) {
            return false;
        }
        match &*self.mesh.borrow() {
            Mesh::Ready(connection, _) => !connection.is_draining() || connection.is_closed(),
            _ => true,
        }
    }

    /// A connection for one more request. `repeatable`: it may be sent again.
    pub async fn acquire(
        self: &Rc<Self>,
        shared: &std::sync::Arc<Shared>,
        version: Version,
        repeatable: bool,
    ) -> Result<Link, ConnectError> {
        let result = match (&self.identity, version) {
            (Some(identity), _) => self.mesh_connection(shared, identity).await.map(Link::H2),
            (None, Version::H2) => self.plain_h2().await.map(Link::H2),
            (None, _) => self.plain_h1(repeatable).await,
        };
        if result.is_err() {
            self.failed();
        }
        result
    }

    async fn mesh_connection(
        self: &Rc<Self>,
        shared: &std::sync::Arc<Shared>,
        identity: &SpiffeId,
    ) -> Result<Rc<Connection>, ConnectError> {
        let generation = shared.tls.load().as_ref().map_or(0, |t| t.generation);
        let attempt = {
            let mut mesh = self.mesh.borrow_mut();
            match &*mesh {
                Mesh::Ready(connection, of)
                    if connection.can_open().is_ok() && *of == generation =>
                {
                    return Ok(connection.clone());
                }
                Mesh::Connecting(attempt) => attempt.clone(),
                previous => {
                    // A connection of an older certificate ends when its
                    // requests have.
                    if let Mesh::Ready(connection, _) = previous {
                        connection.shutdown();
                    }
                    let attempt = Rc::new(Attempt::default());
                    *mesh = Mesh::Connecting(attempt.clone());
                    self.spawn_connect(
                        shared.clone(),
                        identity.clone(),
                        generation,
                        attempt.clone(),
                    );
                    attempt
                }
            }
        };
        attempt.done.notified().await;
        // Every waiter passes the signal on.
        attempt.done.notify_one();
        if let Some(error) = &*attempt.error.borrow() {
            return Err(error.clone());
        }
        match &*self.mesh.borrow() {
            Mesh::Ready(connection, _) => Ok(connection.clone()),
            _ => Err(ConnectError::Unreachable(
                self.address,
                "the connection was lost".into(),
            )),
        }
    }

    /// In a task of its own, so that a caller that goes away leaves the others'
    /// connection alone.
    fn spawn_connect(
        self: &Rc<Self>,
        shared: std::sync::Arc<Shared>,
        identity: SpiffeId,
        generation: u64,
        attempt: Rc<Attempt>,
    ) {
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let connected = connect_mesh(&shared, this.address, &identity, true).await;
            let driven = match connected {
                Ok(io) => {
                    let connection = Connection::new(Role::Client, Dialect::Mesh);
                    *this.mesh.borrow_mut() = Mesh::Ready(connection.clone(), generation);
                    Some((connection, io))
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection");
                    *attempt.error.borrow_mut() = Some(error);
                    *this.mesh.borrow_mut() = Mesh::None;
                    None
                }
            };
            attempt.done.notify_one();
            if let Some((connection, io)) = driven {
                let ended = drive(connection.clone(), io, Vec::new(), |_, _| {}).await;
                tracing::debug!(address = %this.address, ?ended, "connection ended");
                if connection.peer_left() {
                    // It said that it is going away: others come first.
                    this.paused_until.set(Some(Instant::now() + LEAVING));
                }
                let mut mesh = this.mesh.borrow_mut();
                if matches!(&*mesh, Mesh::Ready(c, _) if Rc::ptr_eq(c, &connection)) {
                    *mesh = Mesh::None;
                }
            }
        });
    }

    async fn plain_h2(self: &Rc<Self>) -> Result<Rc<Connection>, ConnectError> {
        self.h2.borrow_mut().retain(|c| !c.is_draining());
        if let Some(open) = self.h2.borrow().iter().find(|c| c.can_open().is_ok()) {
            return Ok(open.clone());
        }
        // Boxed: a request's task is small, for most find a connection.
        let io = Box::pin(connect_plain(self.address)).await?;
        let connection = Connection::new(Role::Client, Dialect::Standard);
        self.h2.borrow_mut().push(connection.clone());
        let (this, driven) = (self.clone(), connection.clone());
        tokio::task::spawn_local(async move {
            let ended = drive(driven.clone(), io, Vec::new(), |_, _| {}).await;
            tracing::debug!(address = %this.address, ?ended, "connection ended");
            this.h2.borrow_mut().retain(|c| !Rc::ptr_eq(c, &driven));
        });
        Ok(connection)
    }

    async fn plain_h1(&self, repeatable: bool) -> Result<Link, ConnectError> {
        let limit = if repeatable { IDLE } else { IDLE_UNSAFE };
        let now = Instant::now();
        while let Some((mut message, since)) = self.take_idle() {
            if now.duration_since(since) > limit {
                // The others are older still.
                self.idle.borrow_mut().clear();
                break;
            }
            if !message.io.is_stale() {
                return Ok(Link::H1 {
                    message,
                    reused: true,
                });
            }
        }
        // Boxed: a request's task is small, for most find a connection.
        let io = Box::pin(connect_plain(self.address)).await?;
        let message = Box::new(Message::new(io));
        Ok(Link::H1 {
            message,
            reused: false,
        })
    }

    /// The one that was used last: the others may go.
    fn take_idle(&self) -> Option<(Box<Message>, Instant)> {
        self.idle.borrow_mut().pop()
    }

    /// Keeps a connection for the next request.
    pub fn give_back(&self, mut message: Box<Message>) {
        message.release();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push((message, clock::coarse()));
        }
    }

    /// Called about once a second: notices what has ended.
    pub fn tick(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|(message, since)| {
            now.duration_since(*since) < IDLE && !message.io.is_stale()
        });
        if let Mesh::Ready(connection, _) = &*self.mesh.borrow() {
            connection.check_alive(now);
        }
        for connection in self.h2.borrow().iter() {
            connection.check_alive(now);
        }
    }

    /// Whether nothing here would be missed.
    pub fn is_unused(&self) -> bool {
        self.in_flight.get() == 0
            && self.idle.borrow().is_empty()
            && self.h2.borrow().is_empty()
            && matches!(&*self.mesh.borrow(), Mesh::None)
    }

    /// Closes what is warm, for an endpoint that is gone from its services.
    pub fn retire(&self) {
        self.idle.borrow_mut().clear();
        if let Mesh::Ready(connection, _) = &*self.mesh.borrow() {
            connection.shutdown();
        }
        for connection in self.h2.borrow().iter() {
            connection.shutdown();
        }
    }
}
