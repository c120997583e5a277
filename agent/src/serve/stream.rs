//! A client's bytes: which HTTP it speaks, by its first ones, and an end for a client that does not take its answer.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// How an HTTP/2 connection begins; no method of HTTP/1 does.
const HTTP2: [u8; 3] = *b"PRI";

/// A connection whose first bytes have been looked at.
pub(crate) struct ClientStream<S> {
    stream: S,
    first: [u8; HTTP2.len()],
    /// Of the first bytes, those that came.
    came: usize,
    /// Of those that came, the ones that have been read again.
    read: usize,
    patience: Duration,
    /// Since when the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientStream<S> {
    /// Reads the first bytes. From then on the client has `patience` to take what it is sent.
    pub(crate) async fn begin(mut stream: S, patience: Duration) -> io::Result<ClientStream<S>> {
        let (mut first, mut came) = ([0; HTTP2.len()], 0);
        while came < first.len() && first[..came] == HTTP2[..came] {
            match stream.read(&mut first[came..]).await? {
                0 => break,
                read => came += read,
            }
        }
        Ok(ClientStream {
            stream,
            first,
            came,
            read: 0,
            patience,
            stalled: None,
        })
    }

    /// True if it speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.first == HTTP2
    }

    /// Ends a wait that has lasted too long.
    fn limit<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take its answer",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read < self.came {
            let length = buf.remaining().min(self.came - self.read);
            buf.put_slice(&self.first[self.read..self.read + length]);
            self.read += length;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limit(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limit(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.limit(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.limit(cx, polled)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn begin(sent: &[&[u8]]) -> ClientStream<tokio::io::DuplexStream> {
        let (mut client, server) = tokio::io::duplex(1024);
        for part in sent {
            client.write_all(part).await.unwrap();
        }
        drop(client);
        ClientStream::begin(server, Duration::ZERO).await.unwrap()
    }

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_not_lost() {
        for (sent, http2) in [
            (&[b"PRI * HTTP/2.0".as_slice()][..], true),
            (&[b"P", b"RI * HTTP/2.0"], true),
            (&[b"POST /"], false),
            (&[b"G"], false),
            (&[b"PR"], false),
            (&[b""], false),
        ] {
            let mut stream = begin(sent).await;
            assert_eq!(stream.is_http2(), http2, "{sent:?}");
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent.concat());
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut client, server) = tokio::io::duplex(4);
        client.write_all(b"GET").await.unwrap();
        let mut stream = ClientStream::begin(server, Duration::ZERO).await.unwrap();
        let error = stream.write_all(b"more than fits").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
