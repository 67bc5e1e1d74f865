//! The choice among a service's endpoints: power of two choices over
//! peak-EWMA, for each request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::endpoint::LocalEndpoint;
use crate::clock;
use crate::config::{EndpointSet, EndpointSlot};
use crate::worker::Worker;

/// Retries that the budget grants for each request, and each second on top
/// (the values that XBackendTrafficPolicy has as defaults).
const BUDGET_PER_REQUEST: f64 = 0.2;
const BUDGET_PER_SECOND: f64 = 10.0;
const BUDGET_MAX: f64 = 100.0;

/// One service's endpoints, as a worker sees them.
pub struct Balancer {
    slot: EndpointSlot,
    seen: RefCell<Arc<EndpointSet>>,
    local: RefCell<Vec<Rc<LocalEndpoint>>>,
    budget: Cell<f64>,
    budget_at: Cell<Instant>,
    used: Cell<Instant>,
}

impl Balancer {
    /// Follows a set of endpoints.
    pub fn new(slot: EndpointSlot) -> Rc<Self> {
        Rc::new(Self {
            slot,
            seen: RefCell::default(),
            local: RefCell::default(),
            budget: Cell::new(BUDGET_PER_SECOND),
            budget_at: Cell::new(Instant::now()),
            used: Cell::new(clock::coarse()),
        })
    }

    /// Takes in a set that has changed.
    fn refresh(&self, worker: &Worker) {
        let current = self.slot.load();
        if Arc::ptr_eq(&current, &self.seen.borrow()) {
            return;
        }
        let local = current.iter().map(|e| worker.endpoint(e)).collect();
        *self.local.borrow_mut() = local;
        *self.seen.borrow_mut() = current.clone();
    }

    /// The better of two, leaving out those in `tried` and those that are not
    /// available while others are. `None`: there is no endpoint.
    pub fn pick(&self, worker: &Worker, tried: &[Rc<LocalEndpoint>]) -> Option<Rc<LocalEndpoint>> {
        self.refresh(worker);
        let local = self.local.borrow();
        if let [only] = local.as_slice() {
            return Some(only.clone());
        }
        let now = Instant::now();
        let untried = |e: &&Rc<LocalEndpoint>| !tried.iter().any(|t| Rc::ptr_eq(t, e));
        if tried.is_empty() && local.len() > 1 {
            // The usual case makes no list.
            let a = local.get(worker.random_below(local.len()))?;
            let b = local.get(worker.random_below(local.len()))?;
            let fine = [a, b].into_iter().filter(|e| e.is_available(now));
            if let Some(best) = fine.min_by(|a, b| a.cost().total_cmp(&b.cost())) {
                return Some(best.clone());
            }
        }
        let mut left: Vec<&Rc<LocalEndpoint>> = local.iter().filter(untried).collect();
        if left.is_empty() {
            // All have had their turn: a further attempt may go to any.
            left = local.iter().collect();
        }
        let available: Vec<_> = left
            .iter()
            .copied()
            .filter(|e| e.is_available(now))
            .collect();
        let among = if available.is_empty() {
            left
        } else {
            available
        };
        let a = among.get(worker.random_below(among.len()))?;
        let b = among.get(worker.random_below(among.len()))?;
        let best = if a.cost() <= b.cost() { a } else { b };
        Some(Rc::clone(best))
    }

    /// A request: the budget for retries grows.
    pub fn deposit(&self) {
        self.used.set(clock::coarse());
        self.budget
            .set((self.budget.get() + BUDGET_PER_REQUEST).min(BUDGET_MAX));
    }

    /// Whether there was a request in the last while.
    pub fn is_used(&self, now: Instant, within: std::time::Duration) -> bool {
        now.duration_since(self.used.get()) < within
    }

    /// Whether one more retry may be made.
    pub fn withdraw(&self) -> bool {
        let now = Instant::now();
        let elapsed = now
            .duration_since(self.budget_at.replace(now))
            .as_secs_f64();
        let budget = (self.budget.get() + elapsed * BUDGET_PER_SECOND).min(BUDGET_MAX);
        let granted = budget >= 1.0;
        self.budget.set(if granted { budget - 1.0 } else { budget });
        granted
    }
}
