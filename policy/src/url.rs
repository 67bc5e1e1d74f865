//! Where a redirect leads, and what a rewrite makes of a path (Gateway API,
//! `HTTPRequestRedirectFilter`, `HTTPURLRewriteFilter`).

use weft_proto as proto;
use weft_proto::path_change::Change;

use crate::RequestView;

/// The path after a change. `matched`: the prefix that the rule's match names.
pub fn change_path(path: &str, matched: &str, change: &proto::PathChange) -> String {
    match &change.change {
        None => path.to_owned(),
        Some(Change::Full(full)) if full.is_empty() => "/".to_owned(),
        Some(Change::Full(full)) => full.clone(),
        Some(Change::Prefix(new)) => {
            let rest = path.strip_prefix(matched.trim_end_matches('/'));
            let rest = rest.unwrap_or(path).trim_start_matches('/');
            let new = new.trim_end_matches('/');
            match (new, rest) {
                ("", rest) => format!("/{rest}"),
                (new, "") if path.len() > 1 && path.ends_with('/') && !matched.ends_with('/') => {
                    format!("{new}/")
                }
                (new, "") => new.to_owned(),
                (new, rest) => format!("{new}/{rest}"),
            }
        }
    }
}

/// The `Location` of a redirect. `scheme` is the request's.
pub fn location(
    redirect: &proto::Redirect,
    request: &dyn RequestView,
    matched: &str,
    scheme: &str,
) -> String {
    let (host, port) = split_port(request.host());
    let host = match redirect.hostname.as_str() {
        "" => host,
        hostname => hostname,
    };
    let port = match (redirect.port, redirect.scheme.as_str()) {
        (0, "") => port.unwrap_or_default().to_owned(),
        // The usual port of a new scheme.
        (0, _) => String::new(),
        (port, _) => port.to_string(),
    };
    let scheme = match redirect.scheme.as_str() {
        "" => scheme,
        scheme => scheme,
    };
    let usual = matches!(
        (scheme, port.as_str()),
        (_, "") | ("http", "80") | ("https", "443")
    );
    let port = if usual {
        String::new()
    } else {
        format!(":{port}")
    };
    let path = match &redirect.path {
        None => request.path().to_owned(),
        Some(change) => change_path(request.path(), matched, change),
    };
    let query = request
        .query()
        .map_or_else(String::new, |q| format!("?{q}"));
    format!("{scheme}://{host}{port}{path}{query}")
}

/// Host and port of an authority.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::testing::Plain;

    fn prefix(new: &str) -> proto::PathChange {
        proto::PathChange {
            change: Some(Change::Prefix(new.to_owned())),
        }
    }

    /// The table of `ReplacePrefixMatch` in Gateway API.
    #[test]
    fn prefixes_are_replaced_as_gateway_api_says() {
        for (path, matched, new, changed) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
        ] {
            let got = change_path(path, matched, &prefix(new));
            assert_eq!(got, changed, "{path} {matched} {new}");
        }
    }

    #[test]
    fn a_location_keeps_what_is_not_changed() {
        let request = Plain {
            query: Some("q=1"),
            host: "web:8080",
            ..Plain::get("/a/b")
        };
        let at = |redirect| location(&redirect, &request, "/a", "http");
        assert_eq!(at(proto::Redirect::default()), "http://web:8080/a/b?q=1");
        let https = proto::Redirect {
            scheme: "https".to_owned(),
            ..Default::default()
        };
        assert_eq!(at(https), "https://web/a/b?q=1");
        let all = proto::Redirect {
            scheme: "http".to_owned(),
            hostname: "example.org".to_owned(),
            port: 80,
            path: Some(prefix("/c")),
            status: 301,
        };
        assert_eq!(at(all), "http://example.org/c/b?q=1");
    }
}
