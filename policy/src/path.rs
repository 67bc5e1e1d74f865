//! The one normal form of a request's path: decisions, routing and the
//! application all see it, so that none can be shown another path than the rest.
//!
//! RFC 3986 section 6.2.2: escapes of unreserved characters are decoded, the
//! others written in upper case, dot segments resolved. Beyond it: runs of
//! slashes become one. Escaped slashes stay escaped.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Neither `/...` nor `*`.
    #[error("the path does not start with '/'")]
    Relative,
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("the path has a broken percent escape")]
    Escape,
    /// A backslash, a control character, a space or an escaped NUL.
    #[error("the path has a character that is not allowed")]
    Character,
}

/// Normalizes a path (without its query). `*` stays as it is.
pub fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>, PathError> {
    if path == b"*" {
        return Ok(Cow::Borrowed(path));
    }
    if path.first() != Some(&b'/') {
        return Err(PathError::Relative);
    }
    let mut previous = 0;
    let mut plain = true;
    for &byte in path {
        if byte <= b' ' || byte == 0x7f || byte == b'\\' {
            return Err(PathError::Character);
        }
        plain &= byte != b'%' && !(previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = byte;
    }
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    resolve(&decode(path)?).map(Cow::Owned)
}

/// Decodes what is unreserved, writes other escapes in upper case.
fn decode(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = bytes.next().and_then(|b| (b as char).to_digit(16));
            digit
                .and_then(|d| u8::try_from(d).ok())
                .ok_or(PathError::Escape)
        };
        let value = digit()? << 4 | digit()?;
        match value {
            0 => return Err(PathError::Character),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(value),
            _ => {
                let hex = |d: u8| if d < 10 { b'0' + d } else { b'A' + d - 10 };
                out.extend([b'%', hex(value >> 4), hex(value & 15)]);
            }
        }
    }
    Ok(out)
}

/// Resolves dot segments and joins slashes. `..` above the root stays at the root.
fn resolve(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut directory = true;
    for segment in path.split(|&b| b == b'/').skip(1) {
        directory = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = out.iter().rposition(|&b| b == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if directory {
        out.push(b'/');
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(path: &str) -> String {
        String::from_utf8(normalize(path.as_bytes()).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn every_way_to_write_a_path_has_one_form() {
        for (written, wanted) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%2e%2E/admin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a...b", "/a...b"),
            ("*", "*"),
        ] {
            assert_eq!(normal(written), wanted, "{written}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for path in [
            "", "a", "/a\\b", "/%", "/%4", "/%zz", "/%00", "/a b", "/a\0",
        ] {
            assert!(normalize(path.as_bytes()).is_err(), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(path in "/[a./%2eF5c~]{0,24}") {
            if let Ok(once) = normalize(path.as_bytes()) {
                prop_assert_eq!(&normalize(&once).unwrap(), &once);
                let text = String::from_utf8_lossy(&once).into_owned();
                prop_assert!(!text.contains("//") && !text.contains("/../") && !text.ends_with("/.."));
            }
        }
    }
}
