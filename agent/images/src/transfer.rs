//! Transfers from a registry that is busy, cuts off or falls silent: a request is repeated, a blob goes on where it was
//! left. What the bytes are worth is not judged here but by their digest.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use keelson_cri::chain;
use oci_client::Client;
use oci_client::client::BlobResponse;
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_spec::distribution::Reference;

/// Tries of a request, and of a transfer that does not get ahead.
pub(crate) const TRIES: u32 = 3;
/// Wait before the second try; it doubles with each further one.
const WAIT: Duration = Duration::from_millis(500);
/// With less than that between two interruptions a transfer does not get ahead.
const PROGRESS: u64 = 1 << 20;

/// Whether the same request may succeed soon.
fn transient(error: &OciDistributionError) -> bool {
    match error {
        // Nobody answers: that is for the kubelet's back-off, which people see.
        OciDistributionError::RequestError(error) => !error.is_connect() && !error.is_builder(),
        OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 429 | 500 | 502 | 503 | 504),
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests)
        }
        _ => false,
    }
}

/// Whether the registry answered that these credentials do not suffice, or hides behind "not found" that they do not.
pub(crate) fn refused(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            true
        }
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403 | 404),
        OciDistributionError::RegistryError { envelope, .. } => {
            !envelope.errors.iter().any(|error| error.code == OciErrorCode::Toomanyrequests)
        }
        _ => false,
    }
}

/// Repeats a request while it fails for reasons that pass.
pub(crate) async fn patiently<T, Fut>(request: impl Fn() -> Fut) -> Result<T, OciDistributionError>
where
    Fut: Future<Output = Result<T, OciDistributionError>>,
{
    let mut wait = WAIT;
    for _ in 1..TRIES {
        match request().await {
            Err(error) if transient(&error) => {
                tracing::debug!(error = chain(&error), "request to a registry is repeated");
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            other => return other,
        }
    }
    request().await
}

type Chunks = futures::stream::BoxStream<'static, io::Result<Bytes>>;

/// Where a blob comes from.
struct Source {
    client: Client,
    reference: Reference,
    digest: String,
}

impl Source {
    /// The blob's bytes from an offset on.
    async fn request(&self, from: u64) -> Result<Chunks, OciDistributionError> {
        let Self { client, reference, digest } = self;
        if from == 0 {
            let whole = patiently(|| client.pull_blob_stream(reference, digest.as_str())).await?;
            return Ok(whole.stream);
        }
        let rest = patiently(|| client.pull_blob_stream_partial(reference, digest.as_str(), from, None));
        Ok(match rest.await? {
            BlobResponse::Partial(rest) => rest.stream,
            // It does not know of ranges: what was had already is passed over.
            BlobResponse::Full(whole) => Box::pin(skip(whole.stream, from)),
        })
    }
}

/// The bytes of one blob.
pub(crate) struct Transfer {
    source: Source,
    size: u64,
    /// Silence after which the registry is asked again.
    silence: Duration,
    received: u64,
    /// What was received at the last interruption, and how many there were without progress.
    mark: u64,
    tries: u32,
    stream: Option<Chunks>,
}

impl Transfer {
    /// Opens it: an error is the registry's refusal.
    pub(crate) async fn open(
        client: &Client,
        reference: &Reference,
        digest: &str,
        size: u64,
        silence: Duration,
    ) -> Result<Self, OciDistributionError> {
        let source =
            Source { client: client.clone(), reference: reference.clone(), digest: digest.to_owned() };
        let stream = Some(source.request(0).await?);
        Ok(Self { source, size, silence, received: 0, mark: 0, tries: 0, stream })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let interrupted = match &mut self.stream {
                Some(stream) => match tokio::time::timeout(self.silence, stream.try_next()).await {
                    Ok(Ok(Some(bytes))) => {
                        self.received += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    // There is more to come of a registry only where content is wrong; the digest will tell.
                    _ if self.received >= self.size => return Ok(None),
                    Ok(Ok(None)) => "the registry ended the transfer".to_owned(),
                    Ok(Err(error)) => chain(&error),
                    Err(_elapsed) => format!("the registry sent nothing for {:?}", self.silence),
                },
                None => match self.source.request(self.received).await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => chain(&error),
                },
            };
            self.stream = None;
            self.interrupted(&interrupted)?;
            tokio::time::sleep(WAIT * self.tries).await;
        }
    }

    /// Counts an interruption; an error when there were too many in a row.
    fn interrupted(&mut self, why: &str) -> io::Result<()> {
        if self.received - self.mark >= PROGRESS {
            self.tries = 0;
        }
        self.mark = self.received;
        self.tries += 1;
        let Self { received, size, source, .. } = self;
        let text = format!("{why}, after {received} of {size} bytes of {}", source.digest);
        if self.tries < TRIES {
            tracing::debug!(why = text, "transfer from a registry is resumed");
            return Ok(());
        }
        Err(io::Error::other(format!("{text} (tried {TRIES} times)")))
    }

    /// As a stream, which ends after its first error.
    pub(crate) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures::stream::try_unfold(self, async |mut transfer| {
            Ok(transfer.next().await?.map(|bytes| (bytes, transfer)))
        })
    }
}

/// The stream without its first bytes.
fn skip(stream: Chunks, mut count: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream.try_filter_map(move |mut bytes| {
        let passed = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
        count -= passed as u64;
        let rest = bytes.split_off(passed);
        std::future::ready(Ok((!rest.is_empty()).then_some(rest)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_had_is_passed_over() {
        let chunks = ["ab", "cd", "", "efg"].map(|text| Ok(Bytes::from(text)));
        let check = async |count, want: &str| {
            let chunks =
                chunks.each_ref().map(|chunk: &io::Result<Bytes>| Ok(chunk.as_ref().unwrap().clone()));
            let rest: Vec<Bytes> =
                skip(Box::pin(futures::stream::iter(chunks)), count).try_collect().await.unwrap();
            assert_eq!(rest.concat(), want.as_bytes(), "{count}");
        };
        check(0, "abcdefg").await;
        check(3, "defg").await;
        check(4, "efg").await;
        check(9, "").await;
    }

    #[test]
    fn which_errors_pass() {
        let server =
            |code| OciDistributionError::ServerError { code, url: String::new(), message: String::new() };
        for (code, passes, is_refusal) in [
            (429, true, false),
            (503, true, false),
            (403, false, true),
            (404, false, true),
            (501, false, false),
        ] {
            assert_eq!((transient(&server(code)), refused(&server(code))), (passes, is_refusal), "{code}");
        }
        let told = |code: &str| OciDistributionError::RegistryError {
            envelope: serde_json::from_str(&format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#)).unwrap(),
            url: String::new(),
        };
        assert!(transient(&told("TOOMANYREQUESTS")) && !refused(&told("TOOMANYREQUESTS")));
        assert!(refused(&told("DENIED")) && !transient(&told("DENIED")));
    }
}
