//! A connection's bytes: plain, or TLS through rustls' buffered interface.
//!
//! Everything is polled, and reads go through the worker's shared buffers. A
//! short read clears the socket's readiness, which saves the system call that
//! would only say "nothing more".

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, Connection as TlsConnection, ServerConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers::{BULK, put_back, take_bulk, take_scratch};

/// Ciphertext that rustls may hold for sending, in bytes.
const TLS_OUT: usize = 256 * 1024;
/// A peer that says nothing for this long is asked whether it is there.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(60);

/// A connected socket, with or without TLS.
pub struct Io {
    tcp: TcpStream,
    tls: Option<Box<Tls>>,
    /// Read from the socket already, to be taken in first.
    early: Vec<u8>,
    /// Read by somebody who only wanted to know whether there is something.
    peeked: Vec<u8>,
}

struct Tls {
    connection: TlsConnection,
    peer_closed: bool,
}

/// Sets what every socket of the proxy has.
pub fn prepare<'a>(socket: impl Into<SockRef<'a>>) {
    let socket = socket.into();
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 6)
        .with_retries(6);
    // Refused only on a socket that is gone, which the next read tells.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

impl Io {
    /// Bytes as they are.
    pub fn plain(tcp: TcpStream) -> Self {
        Self {
            tcp,
            tls: None,
            early: Vec::new(),
            peeked: Vec::new(),
        }
    }

    /// Puts bytes back that were read to find out what is spoken.
    pub fn with_early(mut self, early: Vec<u8>) -> Self {
        self.early = early;
        self
    }

    /// The calling side of a TLS session that `handshake` begins.
    pub fn tls_client(tcp: TcpStream, peer: IpAddr, config: Arc<ClientConfig>) -> io::Result<Self> {
        // SNI is not sent; the name keys the session cache.
        let name = rustls::pki_types::ServerName::from(peer);
        let connection = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Self::tls(tcp, connection.into(), Vec::new()))
    }

    /// The called side of a TLS session that `handshake` begins. `early` was
    /// read already.
    pub fn tls_server(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        early: Vec<u8>,
    ) -> io::Result<Self> {
        let connection = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self::tls(tcp, connection.into(), early))
    }

    fn tls(tcp: TcpStream, mut connection: TlsConnection, early: Vec<u8>) -> Self {
        connection.set_buffer_limit(Some(TLS_OUT));
        Self {
            tcp,
            tls: Some(Box::new(Tls {
                connection,
                peer_closed: false,
            })),
            early,
            peeked: Vec::new(),
        }
    }

    /// Makes the handshake of a TLS session.
    pub async fn handshake(mut self) -> io::Result<Self> {
        poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(tls) = &mut self.tls else {
                return Poll::Ready(Ok(()));
            };
            if tls.connection.wants_write() {
                ready!(tls.poll_send(&mut self.tcp, cx))?;
            }
            if !tls.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let received = tls.poll_receive(&mut self.tcp, &mut self.early, cx, &mut []);
            match ready!(received) {
                Ok((0, _)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(e) => {
                    // The alert that says why goes out, as far as it can.
                    let _ = tls.poll_send(&mut self.tcp, cx);
                    return Poll::Ready(Err(e));
                }
            }
        }
    }

    /// The TLS session, if there is one.
    pub fn session(&self) -> Option<&rustls::CommonState> {
        self.tls.as_ref().map(|tls| &*tls.connection)
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads into `buffer`; 0: the peer has ended its side.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if !self.peeked.is_empty() {
            return Poll::Ready(Ok(take_early(&mut self.peeked, buffer)));
        }
        let Some(tls) = &mut self.tls else {
            if !self.early.is_empty() {
                return Poll::Ready(Ok(take_early(&mut self.early, buffer)));
            }
            return poll_tcp_read(&mut self.tcp, cx, buffer);
        };
        loop {
            match tls.connection.reader().read(buffer) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
            let received = tls.poll_receive(&mut self.tcp, &mut self.early, cx, buffer);
            let (n, filled) = ready!(received)?;
            if tls.connection.wants_write() && !tls.connection.is_handshaking() {
                // Key updates and alerts; what does not go out now goes with
                // the next write.
                let _ = tls.poll_send(&mut self.tcp, cx);
            }
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            if n == 0 && !tls.peer_closed {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Writes as much as can be taken.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else {
            return Pin::new(&mut self.tcp).poll_write(cx, data);
        };
        let mut taken = 0;
        loop {
            taken += tls
                .connection
                .writer()
                .write(data.get(taken..).unwrap_or_default())?;
            match tls.poll_send(&mut self.tcp, cx) {
                Poll::Ready(Ok(())) if taken < data.len() => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(taken)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Sends what TLS still holds.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.tls {
            Some(tls) if tls.connection.wants_write() => tls.poll_send(&mut self.tcp, cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ends the sending side; what the peer sends can still be read.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
            ready!(tls.poll_send(&mut self.tcp, cx))?;
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    /// Ends the connection in order, within a bounded time.
    pub async fn close(&mut self) {
        let bound = std::time::Duration::from_secs(1);
        let _ = tokio::time::timeout(bound, poll_fn(|cx| self.poll_shutdown(cx))).await;
    }

    /// Makes the socket reset its connection when it is dropped.
    pub fn reset_on_drop(&self) {
        let _ = SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO));
    }

    /// Whether a connection that ought to be silent has said something or has
    /// ended. No system call is made while it is silent.
    pub fn is_stale(&mut self) -> bool {
        if !self.early.is_empty() {
            return true;
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.tls {
            Some(_) => self.poll_read(&mut cx, &mut [0]).is_ready(),
            None => poll_tcp_read(&mut self.tcp, &mut cx, &mut [0]).is_ready(),
        }
    }

    /// Waits until there is something to read, or the connection's end, and
    /// keeps what was read.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = take_scratch();
        let read = self.poll_read(cx, &mut scratch).map_ok(|n| {
            self.peeked
                .extend_from_slice(scratch.get(..n).unwrap_or_default());
        });
        put_back(scratch);
        read
    }

    /// Whether `poll_peek` found bytes.
    pub fn has_peeked(&self) -> bool {
        !self.peeked.is_empty()
    }

    /// The socket, of a connection without TLS, and what was read from it.
    pub fn into_plain(self) -> (TcpStream, Vec<u8>) {
        (self.tcp, self.early)
    }
}

impl Tls {
    /// Reads ciphertext and hands it to rustls; plaintext goes to `out` as far
    /// as it fits. Returns both lengths; no ciphertext: the peer's side has ended.
    fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        early: &mut Vec<u8>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<(usize, usize)>> {
        if !early.is_empty() {
            let bytes = std::mem::take(early);
            let (left, filled) = self.take_in(&bytes, out)?;
            *early = bytes.get(bytes.len() - left..).unwrap_or_default().to_vec();
            return Poll::Ready(Ok((bytes.len() - left, filled)));
        }
        let mut scratch = if out.len() >= BULK {
            take_bulk()
        } else {
            take_scratch()
        };
        let read = poll_tcp_read(tcp, cx, &mut scratch);
        let outcome = read.map(|read| {
            let bytes = scratch.get(..read?).unwrap_or_default();
            let (left, filled) = self.take_in(bytes, out)?;
            if left > 0 {
                *early = bytes.get(bytes.len() - left..).unwrap_or_default().to_vec();
            }
            Ok((bytes.len(), filled))
        });
        put_back(scratch);
        outcome
    }

    /// Returns how many bytes are left because nobody has room for their
    /// plaintext, and how many bytes of plaintext went to `out`.
    fn take_in(&mut self, mut bytes: &[u8], out: &mut [u8]) -> io::Result<(usize, usize)> {
        let mut filled = 0;
        while !bytes.is_empty() {
            match self.connection.read_tls(&mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                // rustls' buffer for plaintext is full.
                Err(e) if e.kind() == io::ErrorKind::Other => return Ok((bytes.len(), filled)),
                Err(e) => return Err(e),
            }
            let state = self
                .connection
                .process_new_packets()
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            self.peer_closed |= state.peer_has_closed();
            if state.plaintext_bytes_to_read() > 0
                && let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty())
            {
                filled += self.connection.reader().read(room)?;
            }
        }
        Ok((0, filled))
    }

    /// Sends all ciphertext there is.
    fn poll_send(&mut self, tcp: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut adapter = Adapter { tcp, cx };
            match self.connection.write_tls(&mut adapter) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// `std::io::Write` over a polled socket, for rustls.
struct Adapter<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Adapter<'_, '_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.tcp).poll_write(self.cx, data))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn poll_tcp_read(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(tcp).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

fn take_early(early: &mut Vec<u8>, buffer: &mut [u8]) -> usize {
    let n = early.len().min(buffer.len());
    if let (Some(to), Some(from)) = (buffer.get_mut(..n), early.get(..n)) {
        to.copy_from_slice(from);
    }
    if n == early.len() {
        *early = Vec::new();
    } else {
        early.drain(..n);
    }
    n
}
