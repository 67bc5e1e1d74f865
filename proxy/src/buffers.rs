//! Memory that a worker's tasks share for the length of one poll, so that an
//! idle connection holds none.

use std::cell::RefCell;

/// Bytes read from a socket at a time.
pub const SCRATCH: usize = 64 * 1024;
/// Bytes read at a time where bulk data flows: fewer system calls for each GiB.
pub const BULK: usize = 256 * 1024;
/// Buffers of each size that a thread keeps.
const KEEP: usize = 3;

/// Buffers that nobody uses now: those of `SCRATCH` bytes, those of `BULK`.
type Free = (Vec<Vec<u8>>, Vec<Vec<u8>>);

thread_local! {
    static SCRATCHES: RefCell<Free> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A buffer of `SCRATCH` bytes; give it back before the poll ends.
pub fn take_scratch() -> Vec<u8> {
    SCRATCHES
        .with_borrow_mut(|(small, _)| small.pop())
        .unwrap_or_else(|| vec![0; SCRATCH])
}

/// A buffer of `BULK` bytes; give it back before the poll ends.
pub fn take_bulk() -> Vec<u8> {
    SCRATCHES
        .with_borrow_mut(|(_, bulk)| bulk.pop())
        .unwrap_or_else(|| vec![0; BULK])
}

/// Gives a buffer back.
pub fn put_back(buffer: Vec<u8>) {
    SCRATCHES.with_borrow_mut(|(small, bulk)| {
        let kept = if buffer.len() == BULK { bulk } else { small };
        if kept.len() < KEEP {
            kept.push(buffer);
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
    SCRATCHES.with_borrow_mut(|(_, bulk)| bulk.clear());
}
