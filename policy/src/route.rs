//! Where a request goes: HTTPRoute rules in the order that the Gateway API
//! gives them, and the choice among weighted backends.

use std::cmp::Reverse;

use weft_proto as proto;

use crate::matchers::{Named, Path, PolicyError};
use crate::request::RequestView;

/// The rules of one service, compiled; their order is their precedence.
#[derive(Debug, Default)]
pub struct RouteTable {
    rules: Vec<RouteMatch>,
}

#[derive(Debug)]
struct RouteMatch {
    path: Option<Path>,
    headers: Vec<Named>,
    query: Vec<Named>,
    method: String,
}

impl RouteTable {
    /// Compiles the matches of rules; an error names the route.
    pub fn compile(rules: &[proto::RouteRule]) -> Result<Self, (String, PolicyError)> {
        let rules = rules
            .iter()
            .map(|rule| {
                RouteMatch::compile(rule.r#match.as_ref()).map_err(|e| (rule.route.clone(), e))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// No rule: the service's own endpoints take everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Index of the rule that takes whatever no other does, if there is one.
    pub fn catch_all(&self) -> Option<usize> {
        self.rules.iter().position(RouteMatch::is_catch_all)
    }

    /// Index of the first rule that matches.
    pub fn select(&self, request: &dyn RequestView) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(request))
    }
}

impl RouteMatch {
    fn compile(proto: Option<&proto::RouteMatch>) -> Result<Self, PolicyError> {
        let everything = proto::RouteMatch::default();
        let proto = proto.unwrap_or(&everything);
        let named = |list: &[proto::ValueMatch], lower_case| {
            list.iter()
                .map(|m| Named::compile(m, lower_case))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            path: proto.path.as_ref().map(Path::compile).transpose()?,
            headers: named(&proto.headers, true)?,
            query: named(&proto.query, false)?,
            method: proto.method.clone(),
        })
    }

    fn is_catch_all(&self) -> bool {
        let any_path = match &self.path {
            None => true,
            Some(Path::Prefix(prefix)) => prefix.is_empty(),
            Some(Path::Exact(_) | Path::Regex(_)) => false,
        };
        any_path && self.headers.is_empty() && self.query.is_empty() && self.method.is_empty()
    }

    fn matches(&self, request: &dyn RequestView) -> bool {
        (self.method.is_empty() || self.method == request.method())
            && self.path.as_ref().is_none_or(|p| p.matches(request.path()))
            && self
                .headers
                .iter()
                .all(|h| request.any_header(&h.name, &mut |v| h.value.matches(v)))
            && self.query.iter().all(|q| query_matches(q, request.query()))
    }
}

/// The first parameter of that name decides (Gateway API, `queryParams`).
fn query_matches(wanted: &Named, query: Option<&str>) -> bool {
    query
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| *name == wanted.name)
        .is_some_and(|(_, value)| wanted.value.matches(value))
}

/// Picks by weight. `random` is uniform over `0..=u32::MAX`. `None` when every
/// weight is zero.
pub fn pick_weighted(weights: impl Iterator<Item = u32> + Clone, random: u32) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut point = (u64::from(random) * total) >> 32;
    for (index, weight) in weights.enumerate() {
        let weight = u64::from(weight);
        if point < weight {
            return Some(index);
        }
        point -= weight;
    }
    None
}

/// What decides between rules of several routes, smallest first.
///
/// Gateway API, `HTTPRouteRule.matches`: exact path, longest prefix, method,
/// most headers, most query parameters; then the oldest route, its name, and
/// the order within it.
pub fn precedence(
    rule: &proto::RouteRule,
    created: &str,
    route: &str,
    position: usize,
) -> impl Ord + use<> {
    let everything = proto::RouteMatch::default();
    let m = rule.r#match.as_ref().unwrap_or(&everything);
    let (kind, length) = match &m.path {
        Some(p) => match p.kind() {
            proto::path_match::Kind::Exact => (0, p.value.len()),
            proto::path_match::Kind::Regex => (1, p.value.len()),
            proto::path_match::Kind::Prefix => (2, p.value.trim_end_matches('/').len()),
        },
        None => (2, 0),
    };
    (
        kind,
        Reverse(length),
        m.method.is_empty(),
        Reverse(m.headers.len()),
        Reverse(m.query.len()),
        created.to_owned(),
        route.to_owned(),
        position,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::request::testing::Plain;
    use proptest::prelude::*;
    use weft_proto::path_match::Kind;

    fn rule(kind: Kind, path: &str, method: &str, headers: usize) -> proto::RouteRule {
        proto::RouteRule {
            r#match: Some(proto::RouteMatch {
                path: Some(proto::PathMatch {
                    kind: kind.into(),
                    value: path.into(),
                }),
                method: method.into(),
                headers: (0..headers)
                    .map(|i| proto::ValueMatch {
                        kind: 0,
                        name: format!("X-{i}"),
                        value: "1".into(),
                    })
                    .collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_more_specific_rule_comes_first() {
        let ordered = [
            rule(Kind::Exact, "/a", "", 0),
            rule(Kind::Prefix, "/api/v1", "", 0),
            rule(Kind::Prefix, "/api", "GET", 0),
            rule(Kind::Prefix, "/api", "", 2),
            rule(Kind::Prefix, "/api", "", 1),
            rule(Kind::Prefix, "/", "", 0),
        ];
        for pair in ordered.windows(2) {
            let key = |r| precedence(r, "", "", 0);
            assert!(key(&pair[0]) < key(&pair[1]));
        }
        let same = rule(Kind::Prefix, "/", "", 0);
        assert!(precedence(&same, "2026-01-01", "b", 0) < precedence(&same, "2026-02-01", "a", 0));
        assert!(precedence(&same, "", "a", 1) < precedence(&same, "", "b", 0));
    }

    #[test]
    fn a_rule_matches_when_all_its_parts_do() {
        let mut one = rule(Kind::Prefix, "/api", "GET", 1);
        one.r#match.as_mut().unwrap().query = vec![proto::ValueMatch {
            kind: proto::value_match::Kind::Regex.into(),
            name: "v".into(),
            value: "[0-9]+".into(),
        }];
        let table = RouteTable::compile(&[one]).unwrap();
        let full = Plain {
            query: Some("a=b&v=12&v=x"),
            headers: &[("x-0", "1")],
            ..Plain::get("/api/x")
        };
        assert_eq!(table.select(&full), Some(0));
        for request in [
            Plain {
                query: Some("v=12x"),
                ..full
            },
            Plain {
                query: None,
                headers: &[("x-0", "1")],
                ..Plain::get("/api/x")
            },
            Plain {
                query: Some("v=1"),
                headers: &[("x-0", "2")],
                ..Plain::get("/api/x")
            },
            Plain {
                query: Some("v=1"),
                headers: &[("x-0", "1")],
                ..Plain::get("/other")
            },
        ] {
            assert_eq!(table.select(&request), None);
        }
    }

    proptest! {
        #[test]
        fn weights_are_kept(weights in proptest::collection::vec(0u32..1000, 1..6)) {
            let total: u32 = weights.iter().sum();
            let mut seen = vec![0u32; weights.len()];
            for step in 0..10_000u32 {
                let random = step * (u32::MAX / 10_000);
                match pick_weighted(weights.iter().copied(), random) {
                    Some(i) => seen[i] += 1,
                    None => prop_assert_eq!(total, 0),
                }
            }
            for (weight, seen) in weights.iter().zip(&seen) {
                if total > 0 {
                    let wanted = f64::from(*weight) / f64::from(total) * 10_000.0;
                    prop_assert!((f64::from(*seen) - wanted).abs() < 3.0);
                }
            }
        }
    }
}
