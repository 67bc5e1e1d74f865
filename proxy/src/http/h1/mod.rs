//! HTTP/1 (RFC 9112): heads are parsed strictly and written anew, bodies pass
//! as they are.

mod body;
mod message;
mod parse;
mod write;

pub use body::Framing;
pub use message::Message;
pub use parse::{HeadError, keeps_alive, looks_like_request, parse_request, parse_response};
pub use write::{put_request, put_response};
