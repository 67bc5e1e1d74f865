//! Decisions as pure functions of plain data: who may call what, and where a
//! request goes. The proxy acts on them; `meshctl` explains with the same ones.

pub mod authorization;
mod matchers;
pub mod path;
mod request;
pub mod route;
pub mod url;

pub use matchers::PolicyError;
pub use request::{Identity, RequestView};
