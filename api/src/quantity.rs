//! Durations as the Gateway API writes them (GEP-2257).

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Such as `10s`, `1m30s`, `250ms`. Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayDuration(pub Duration);

impl GatewayDuration {
    /// Parses up to four parts of at most five digits, with units h, m, s, ms.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total = Duration::ZERO;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 5 {
                return None;
            }
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, tail) = tail.split_at(letters);
            let millis = match unit {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1000,
                "ms" => 1,
                _ => return None,
            };
            total += Duration::from_millis(number.parse::<u64>().ok()? * millis);
            rest = tail;
            if rest.is_empty() {
                return Some(Self(total));
            }
        }
        None
    }
}

impl Serialize for GatewayDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Parts of at most five digits each.
        let millis = self.0.as_millis();
        let (h, m, s, ms) = (
            millis / 3_600_000,
            millis / 60_000 % 60,
            millis / 1000 % 60,
            millis % 1000,
        );
        let mut text = String::new();
        for (value, unit) in [(h, "h"), (m, "m"), (s, "s"), (ms, "ms")] {
            if value > 0 {
                text.push_str(&format!("{value}{unit}"));
            }
        }
        if text.is_empty() {
            text.push_str("0s");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for GatewayDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is not a duration: write it like 10s, 1m30s or 250ms (GEP-2257)"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        let parse = |text| GatewayDuration::parse(text).map(|d| d.0.as_millis());
        assert_eq!(parse("10s"), Some(10_000));
        assert_eq!(parse("1h2m3s4ms"), Some(3_723_004));
        assert_eq!(parse("0s"), Some(0));
        for bad in ["", "10", "1.5s", "-1s", "100000s", "1d", "1s2s3s4s5s", "s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
