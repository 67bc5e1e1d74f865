//! The first bytes of a connection: who speaks first decides, and nobody waits
//! for a timeout.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use crate::buffers::{put_back, take_scratch};
use crate::detect::{Hello, Spoken, client_hello, spoken};
use crate::transport::Io;

/// A client that has said nothing for this long may be waiting for the server...
const SILENCE: Duration = Duration::from_millis(5);
/// ...or, where HTTP or TLS is spoken, has a connection in reserve.
const RESERVE: Duration = Duration::from_secs(1);

/// Who speaks first on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Nobody was heard yet.
    Unknown,
    /// The client.
    Client,
    /// The server.
    Server,
}

/// What is known of a connection after its first bytes.
pub enum First {
    /// The client spoke. `early` was read.
    Client(Spoken, Vec<u8>),
    /// The server spoke first, or nobody could tell: an opaque connection that
    /// is open already, with what the client has said.
    Server(Io, Vec<u8>),
    /// The client has gone.
    Gone,
}

/// Reads what is there, and adds it to `early`. 0: the client's side has ended.
async fn read_more(io: &mut Io, early: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut scratch = take_scratch();
        let read = io.poll_read(cx, &mut scratch).map_ok(|n| {
            early.extend_from_slice(scratch.get(..n).unwrap_or_default());
            n
        });
        put_back(scratch);
        read
    })
    .await
}

/// Waits until a connection has something to read, without reading it.
async fn readable(io: &mut Io) {
    let _ = poll_fn(|cx| io.poll_peek(cx)).await;
}

/// Reads from the client until it is clear what it speaks. While it is silent,
/// `connect` opens the other side; if that speaks first, the connection is
/// opaque. `before`: who spoke first the last time.
pub async fn first<E>(
    client: &mut Io,
    before: Speaker,
    connect: impl AsyncFnOnce() -> Result<Io, E>,
) -> io::Result<First> {
    let mut early = Vec::new();
    let patience = match before {
        Speaker::Unknown => SILENCE,
        Speaker::Client => RESERVE,
        Speaker::Server => Duration::ZERO,
    };
    if let Ok(found) = tokio::time::timeout(patience, decide(client, &mut early)).await {
        return Ok(found?.map_or(First::Gone, |spoken| First::Client(spoken, early)));
    }
    // Silent: the server may be the one to speak.
    let opened = {
        // Boxed here as elsewhere: a task is as large as all that it may come to.
        let connecting = Box::pin(connect());
        tokio::select! {
            biased;
            found = decide(client, &mut early) => {
                return Ok(found?.map_or(First::Gone, |spoken| First::Client(spoken, early)));
            }
            opened = connecting => opened,
        }
    };
    let Ok(mut server) = opened else {
        // Nobody there to speak: only the client's words tell the protocol,
        // and its request is answered properly.
        let found = decide(client, &mut early).await?;
        return Ok(found.map_or(First::Gone, |spoken| First::Client(spoken, early)));
    };
    tokio::select! {
        biased;
        found = decide(client, &mut early) => match found? {
            None => Ok(First::Gone),
            Some(Spoken::Opaque) => Ok(First::Server(server, early)),
            Some(spoken) => Ok(First::Client(spoken, early)),
        },
        () = readable(&mut server) => Ok(First::Server(server, early)),
    }
}

/// `None`: the client ended before it said anything.
async fn decide(client: &mut Io, early: &mut Vec<u8>) -> io::Result<Option<Spoken>> {
    loop {
        if let Some(found) = spoken(early) {
            return Ok(Some(found));
        }
        if read_more(client, early).await? == 0 {
            return Ok((!early.is_empty()).then_some(Spoken::Opaque));
        }
    }
}

/// Reads a ClientHello to its end, and says whether it is the mesh's.
pub async fn is_mesh_hello(client: &mut Io, early: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        match client_hello(early) {
            Hello::Mesh => return Ok(true),
            Hello::Other => return Ok(false),
            Hello::Partial => {}
        }
        if read_more(client, early).await? == 0 {
            return Ok(false);
        }
    }
}
