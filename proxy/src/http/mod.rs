//! HTTP: what both versions share, each version's framing, and the exchange of
//! one request for one response.

pub mod copy;
pub mod exchange;
pub mod fields;
pub mod h1;
pub mod h2;
pub mod head;
pub mod leg;
pub mod local;
#[cfg(test)]
mod oracle;
pub mod plan;
pub mod serve;

pub(crate) use h2::{contains_token as h2_contains_token, is_authority as h2_authority};
