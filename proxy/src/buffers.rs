//! Memory that a worker's tasks share for the length of one poll, so that an
//! idle connection holds none.

use std::cell::{Cell, RefCell};

/// Bytes read from a socket at a time.
pub const SCRATCH: usize = 64 * 1024;
/// Bytes read at a time where bulk data flows: fewer system calls for each GiB.
pub const BULK: usize = 256 * 1024;

thread_local! {
    // One poll uses at most two at a time: of the socket's bytes, of TLS's.
    static SCRATCHES: [Cell<Vec<u8>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
    static BULKS: [Cell<Vec<u8>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

fn take(kept: &[Cell<Vec<u8>>; 2], length: usize) -> Vec<u8> {
    for place in kept {
        let buffer = place.take();
        if !buffer.is_empty() {
            return buffer;
        }
    }
    vec![0; length]
}

/// A buffer of `SCRATCH` bytes; give it back before the poll ends.
pub fn take_scratch() -> Vec<u8> {
    SCRATCHES.with(|kept| take(kept, SCRATCH))
}

/// A buffer of `BULK` bytes; give it back before the poll ends.
pub fn take_bulk() -> Vec<u8> {
    BULKS.with(|kept| take(kept, BULK))
}

/// Gives a buffer back.
pub fn put_back(buffer: Vec<u8>) {
    let kept = if buffer.len() == BULK {
        &BULKS
    } else {
        &SCRATCHES
    };
    kept.with(|[first, second]| {
        let before = first.replace(buffer);
        if !before.is_empty() {
            second.set(before);
        }
    });
}

thread_local! {
    static HEADS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Room for a head and a short body.
const HEAD: usize = 4 * 1024;
/// Such buffers that a thread keeps.
const KEEP_HEADS: usize = 64;

/// An empty buffer to write a message into.
pub fn take_head() -> Vec<u8> {
    HEADS
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(HEAD))
}

/// Gives back what was written and sent; what has grown is freed.
pub fn put_back_head(mut buffer: Vec<u8>) {
    buffer.clear();
    if buffer.capacity() == HEAD {
        HEADS.with_borrow_mut(|kept| {
            if kept.len() < KEEP_HEADS {
                kept.push(buffer);
            }
        });
    }
}

/// Frees the large buffers: called when a worker has been quiet.
pub fn release_bulk() {
    BULKS.with(|kept| kept.iter().for_each(|place| drop(place.take())));
}
