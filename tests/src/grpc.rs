//! A gRPC client in as few system calls as there can be: one write and usually one read a call.
//!
//! It is for measuring and for load. It knows one call at a time over one HTTP/2 connection, and of the answer's header
//! fields nothing: a call that brings no message has failed.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail};

use crate::protobuf;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const FRAME_HEAD: usize = 9;
/// What a server takes in one frame unless it says more.
const FRAME_MAX: usize = 16 * 1024;
/// The largest window, less what is open from the start: answers never have to wait for us.
const MORE_WINDOW: u32 = 0x7fff_ffff - 65_535;

/// A kept connection to a server of `inference.GRPCInferenceService`.
pub struct Connection {
    stream: TcpStream,
    host: String,
    next_stream: u32,
    received: Vec<u8>,
}

/// A call that is ready to be sent: its path and its message.
pub struct Call {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Connection {
    /// Connects to `host`, an address with a port.
    pub fn open(host: &str) -> Result<Connection> {
        let mut stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        let window = frame(WINDOW_UPDATE, 0, 0, &MORE_WINDOW.to_be_bytes());
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &window].concat())?;
        Ok(Connection {
            stream,
            host: host.to_owned(),
            next_stream: 1,
            received: Vec::new(),
        })
    }

    /// Prepares a call of a method.
    pub fn prepare(&self, method: &str, message: &[u8]) -> Call {
        let mut head = Vec::new();
        // HPACK (RFC 7541): `:method: POST` and `:scheme: http` from the static table, the others as literals.
        head.extend([0x83, 0x86]);
        let path = format!("/inference.GRPCInferenceService/{method}");
        for (name, value) in [
            (":path", path.as_str()),
            (":authority", &self.host),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            head.push(0);
            head.push(name.len() as u8);
            head.extend(name.as_bytes());
            head.push(value.len() as u8);
            head.extend(value.as_bytes());
        }
        let length = (message.len() as u32).to_be_bytes();
        let body = [&[0], &length[..], message].concat();
        Call { head, body }
    }

    /// Makes a call and gives the answer's message.
    pub fn call(&mut self, call: &Call) -> Result<Vec<u8>> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut sent = frame(HEADERS, END_HEADERS, stream, &call.head);
        let mut parts = call.body.chunks(FRAME_MAX).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() { END_STREAM } else { 0 };
            sent.extend(frame(DATA, flags, stream, part));
        }
        self.stream.write_all(&sent)?;
        let mut message = Vec::new();
        loop {
            let (kind, flags, of, content) = self.next_frame()?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => self.stream.write_all(&frame(PING, ACK, 0, &content))?,
                GOAWAY => bail!("the server says goodbye"),
                DATA if of == stream => message.extend(content),
                _ => {}
            }
            if of == stream && (kind == HEADERS || kind == DATA) && flags & END_STREAM != 0 {
                break;
            }
            if of == stream && kind == 3 {
                bail!("the server has reset the call");
            }
        }
        message
            .get(5..)
            .map(<[u8]>::to_vec)
            .context("the call brought no message")
    }

    fn next_frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        let mut buffer = [0; 64 * 1024];
        loop {
            if let Some(head) = self.received.get(..FRAME_HEAD) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if self.received.len() >= FRAME_HEAD + length {
                    let (kind, flags) = (head[3], head[4]);
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let content = self.received[FRAME_HEAD..FRAME_HEAD + length].to_vec();
                    self.received.drain(..FRAME_HEAD + length);
                    return Ok((kind, flags, stream, content));
                }
            }
            match self.stream.read(&mut buffer)? {
                0 => bail!("the server closed the connection"),
                read => self.received.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// A `ModelInferRequest` with one `FP32` tensor.
pub fn infer_request(model: &str, input: &str, shape: &[u64], values: &[f32]) -> Vec<u8> {
    let mut tensor = [protobuf::bytes(1, input.as_bytes()), protobuf::bytes(2, b"FP32")].concat();
    for length in shape {
        tensor.extend(protobuf::number(3, *length));
    }
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    [
        protobuf::bytes(1, model.as_bytes()),
        protobuf::bytes(5, &tensor),
        protobuf::bytes(7, &raw),
    ]
    .concat()
}

/// Of a `ModelInferResponse` the version, and the raw contents of its outputs.
pub fn infer_response(message: &[u8]) -> Result<(String, Vec<Vec<u8>>)> {
    let fields = protobuf::fields(message).context("the answer is malformed")?;
    let of = |number: u32| fields.iter().filter(move |(field, _)| *field == number);
    let version = of(2).next().context("no version")?.1.to_vec();
    let raw = of(6).map(|(_, content)| content.to_vec()).collect();
    Ok((String::from_utf8(version)?, raw))
}
