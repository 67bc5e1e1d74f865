//! Opaque connections: bytes in both directions, half-close and reset included.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use crate::buffers::{put_back, take_bulk};
use crate::transport::Io;
use crate::worker::CallGuard;

/// Bytes moved before other tasks get their turn.
const TURN: usize = 1024 * 1024;

/// One direction.
#[derive(Default)]
struct Half {
    /// Read and not yet taken by the other side.
    pending: Vec<u8>,
    written: usize,
    ended: bool,
    done: bool,
}

/// Why a relay ended other than by both sides' ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayError {
    /// A side reset its connection or was lost.
    Lost,
    /// A policy changed.
    PolicyChanged,
}

/// Moves bytes between two connections until both directions have ended.
/// `moved` gets the counts as they grow. Anything but an orderly end resets
/// both connections.
pub async fn relay(
    a: &mut Io,
    b: &mut Io,
    guard: Option<&CallGuard>,
    mut moved: impl FnMut(u64, u64),
) -> Result<(), RelayError> {
    let (mut forth, mut back) = (Half::default(), Half::default());
    let result = poll_fn(|cx| {
        if guard.is_some_and(|g| g.must_end(cx.waker())) {
            return Poll::Ready(Err(RelayError::PolicyChanged));
        }
        let x = forth.poll(cx, a, b, &mut |n| moved(n, 0));
        let y = back.poll(cx, b, a, &mut |n| moved(0, n));
        match (x, y) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                Poll::Ready(Err(RelayError::Lost))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    if result.is_err() {
        a.reset_on_drop();
        b.reset_on_drop();
    }
    result
}

impl Half {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        moved: &mut dyn FnMut(u64),
    ) -> Poll<io::Result<()>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let mut turn = 0;
        loop {
            while self.written < self.pending.len() {
                let left = self.pending.get(self.written..).unwrap_or_default();
                self.written += ready!(to.poll_write(cx, left))?;
            }
            self.pending = Vec::new();
            self.written = 0;
            ready!(to.poll_flush(cx))?;
            if self.ended {
                ready!(to.poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut buffer = take_bulk();
            let outcome = self.poll_chunk(cx, from, to, &mut buffer);
            put_back(buffer);
            let n = ready!(outcome)?;
            turn += n;
            moved(n as u64);
        }
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(from.poll_read(cx, buffer))?;
        self.ended = n == 0;
        let data = buffer.get(..n).unwrap_or_default();
        let mut written = 0;
        while written < n {
            match to.poll_write(cx, data.get(written..).unwrap_or_default()) {
                Poll::Ready(Ok(more)) => written += more,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    self.pending = data.get(written..).unwrap_or_default().to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(n))
    }
}
