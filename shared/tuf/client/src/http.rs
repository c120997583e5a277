//! Files of a repository over plain HTTP.
//!
//! Nothing here is trusted, TLS would not change that. Invariants: no more than one byte beyond the allowed length is taken
//! from a body, and "the repository does not have it" is never said of a broken connection.

use std::io::{self, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ureq::http::StatusCode;

/// For a connection and the headers of an answer: longer, and the server is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// For a whole metadata file, so that a slow drip of bytes cannot hold a refresh.
const METADATA_TIMEOUT: Duration = Duration::from_secs(60);
/// For a whole target: 100 MB over a bad link.
const TARGET_TIMEOUT: Duration = Duration::from_secs(3600);

/// A folder of files behind a URL.
pub(crate) struct Repository {
    base_url: String,
    agent: ureq::Agent,
}

/// A file that is being fetched.
pub(crate) struct Body {
    url: String,
    reader: io::Take<Box<dyn Read>>,
    max_bytes: u64,
}

impl Repository {
    /// Makes a repository of a URL with or without a slash at its end.
    pub(crate) fn new(base_url: String) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(ANSWER_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            // Suites run on loopback, where a proxy from the environment is only in the way.
            .proxy(None);
        Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            agent: config.build().into(),
        }
    }

    /// Returns a file, or `None` if the repository does not have it. A file longer than `max_bytes` is an error.
    pub(crate) fn fetch(&self, path: &str, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        let Some(mut body) = self.get(path, max_bytes as u64, METADATA_TIMEOUT)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        body.copy_to(&mut bytes, |_| ())?;
        Ok(Some(bytes))
    }

    /// Begins to fetch a target of at most `max_bytes`.
    pub(crate) fn open(&self, path: &str, max_bytes: u64) -> Result<Option<Body>> {
        self.get(path, max_bytes, TARGET_TIMEOUT)
    }

    fn get(&self, path: &str, max_bytes: u64, timeout: Duration) -> Result<Option<Body>> {
        let url = format!("{}/{path}", self.base_url);
        let request = self.agent.get(&url).config().timeout_global(Some(timeout)).build();
        let response = request.call().with_context(|| format!("cannot fetch {url}"))?;
        match response.status() {
            StatusCode::OK => {}
            // Object stores that do not list their folders answer "forbidden" for what they do not have.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(None),
            status => bail!("cannot fetch {url}: the answer is {status}"),
        }
        let body = response.into_body();
        if body.content_length().is_some_and(|length| length > max_bytes) {
            bail!("{url} is longer than {max_bytes} bytes");
        }
        let reader: Box<dyn Read> = Box::new(body.into_reader());
        Ok(Some(Body {
            url,
            reader: reader.take(max_bytes.saturating_add(1)),
            max_bytes,
        }))
    }
}

impl Body {
    /// Copies the file to `out`, and shows each piece to `look`.
    pub(crate) fn copy_to(&mut self, out: &mut dyn Write, mut look: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut copied = 0;
        loop {
            let length = self
                .reader
                .read(&mut buffer)
                .with_context(|| format!("cannot read {}", self.url))?;
            if length == 0 {
                return Ok(());
            }
            copied += length as u64;
            if copied > self.max_bytes {
                bail!("{} is longer than {} bytes", self.url, self.max_bytes);
            }
            look(&buffer[..length]);
            out.write_all(&buffer[..length]).context("cannot write")?;
        }
    }
}
