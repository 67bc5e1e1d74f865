//! A TCP service whose server speaks first: how much there is, then the
//! caller's lines back.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the process ends.
pub async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("::", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(converse(stream));
    }
}

async fn converse(stream: TcpStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    write.write_all(b"STOCK 42\n").await?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        write.write_all(format!("{line}\n").as_bytes()).await?;
    }
    // The caller has ended its side and still hears this.
    write.write_all(b"BYE\n").await
}
