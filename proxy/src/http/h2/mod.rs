//! HTTP/2 framing (RFC 9113): between proxies, and at the applications' edges.
//!
//! One implementation for both. The mesh's own dialect differs only in what a
//! field block may hold: names keep their case, and `:weft` and `:reason` carry
//! what HTTP/1 says and HTTP/2 does not.

mod block;
pub(crate) use block::{contains_token, is_authority};
mod connection;
pub mod frame;
pub mod hpack;
mod receive;
mod stream;
mod tables;

pub use connection::{Connection, OpenError, Role, drive};
pub use frame::{ErrorCode, PREFACE};
pub use stream::{BodyEvent, Stream, StreamError};

/// Which field blocks are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// With applications: RFC 9113 to the letter.
    Standard,
    /// Between two proxies of the mesh.
    Mesh,
}
