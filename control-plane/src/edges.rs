//! What the proxies counted, by edge: since the start, and over the last
//! minutes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use weft_proto::{EdgeKey, EdgeReport, EdgesResponse};

/// Edges kept.
const MAX_EDGES: usize = 20_000;
/// One slice of the recent past, and how many are kept.
const SLICE: Duration = Duration::from_secs(2);
const SLICES: usize = 300;

type Edges = HashMap<Vec<u8>, EdgeReport>;

/// All edges.
pub struct EdgeStore(Mutex<Inner>);

struct Inner {
    start: Instant,
    total: Edges,
    recent: VecDeque<(Instant, Edges)>,
}

impl Default for EdgeStore {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            start: Instant::now(),
            total: Edges::new(),
            recent: VecDeque::new(),
        }))
    }
}

impl EdgeStore {
    /// Adds a proxy's report.
    pub fn add(&self, reports: Vec<EdgeReport>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if inner
            .recent
            .back()
            .is_none_or(|(start, _)| now.duration_since(*start) > SLICE)
        {
            inner.recent.push_back((now, Edges::new()));
        }
        while inner.recent.len() > SLICES {
            inner.recent.pop_front();
        }
        for report in reports {
            let key = report
                .key
                .as_ref()
                .map(EdgeKey::encode_to_vec)
                .unwrap_or_default();
            if let Some((_, slice)) = inner.recent.back_mut() {
                merge(slice, key.clone(), &report);
            }
            merge(&mut inner.total, key, &report);
        }
    }

    /// Sums over the last seconds; 0: since the start.
    pub fn sum(&self, window_seconds: u32) -> EdgesResponse {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if window_seconds == 0 {
            let edges = inner.total.values().cloned().collect();
            return EdgesResponse {
                edges,
                seconds: now.duration_since(inner.start).as_secs_f64(),
            };
        }
        let window = Duration::from_secs(window_seconds.into());
        let mut edges = Edges::new();
        let mut seconds = SLICE.as_secs_f64();
        for (start, slice) in inner
            .recent
            .iter()
            .filter(|(start, _)| now.duration_since(*start) <= window)
        {
            seconds = seconds.max(now.duration_since(*start).as_secs_f64());
            for (key, report) in slice {
                merge(&mut edges, key.clone(), report);
            }
        }
        EdgesResponse {
            edges: edges.into_values().collect(),
            seconds,
        }
    }
}

fn merge(edges: &mut Edges, key: Vec<u8>, report: &EdgeReport) {
    if edges.len() >= MAX_EDGES && !edges.contains_key(&key) {
        return;
    }
    let sum = edges.entry(key).or_insert_with(|| EdgeReport {
        key: report.key.clone(),
        ..Default::default()
    });
    sum.absorb(report);
}
