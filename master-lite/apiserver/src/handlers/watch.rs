//! watch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use keelson_api::codec::{self, MediaType};
use keelson_api::resources::Resource;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Call;
use crate::answer;
use crate::cache::{CachedObject, EventType, WatchMessage};
use crate::extension::{Body, BoxError};
use crate::negotiate::{Form, Shape};
use crate::present::{IncludeObject, Presenter};
use crate::serve::EndsWithServer;
use crate::status::{Result, StatusError};

/// Frames that may wait for a client's socket; what follows waits in the watcher's own queue.
const FRAMES: usize = 64;
/// Upstream's `--min-request-timeout`: a watch without a timeout lasts this long, up to twice.
const MIN_TIMEOUT: u64 = 1800;
/// Time between bookmarks.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// A watch with all it needs, moved into its task.
struct Session {
    call: Call,
    row: Arc<Resource>,
    form: Form,
    include: IncludeObject,
    /// Objects to send as ADDED first.
    initial: Vec<Arc<CachedObject>>,
    /// Changes that had already happened.
    backlog: Vec<WatchMessage>,
    live: mpsc::Receiver<WatchMessage>,
    /// Send the bookmark that ends the initial events, at this revision.
    initial_end: Option<u64>,
    bookmarks: bool,
    deadline: Instant,
}

impl Call {
    /// GET with `watch`.
    pub(crate) async fn watch(self, row: &Arc<Resource>) -> Result<Response<Body>> {
        let Presenter { form, include, .. } = self.presenter(row)?;
        let mut filter = self.filter(row)?;
        if !self.info.name.is_empty() && filter.name().is_none() {
            filter = filter.with_name(&self.info.name);
        }
        let filter = Arc::new(filter);
        let initial_events = self.query.flag("sendInitialEvents");
        let bookmarks = self.query.flag("allowWatchBookmarks");
        if self.query.get("sendInitialEvents").is_some()
            && self.query.get("resourceVersionMatch") != Some("NotOlderThan")
        {
            return Err(StatusError::new(
                422,
                "Invalid",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        let seconds = match self.query.number("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => u64::try_from(seconds).unwrap_or(MIN_TIMEOUT),
            _ => MIN_TIMEOUT + rand::random_range(0..MIN_TIMEOUT),
        };
        let version = self.query.resource_version()?;
        let cache = self.core.cache.resource(&row.storage).ok_or_else(StatusError::no_such_path)?.clone();
        let from_state = initial_events || matches!(version, None | Some(0));
        let mut session = if from_state {
            match version {
                Some(version) => self.core.cache.wait(version).await?,
                None => self.core.cache.wait_newest().await?,
            }
            let (initial, revision, live) = cache.watch_with_state(filter, self.core.cache.applied());
            Session {
                initial,
                live,
                initial_end: (initial_events && bookmarks).then_some(revision),
                ..Session::new(self, row, form, include)
            }
        } else {
            match self.core.cache.watch(&cache, &filter, version.unwrap_or(0)).await {
                Ok(watch) => Session {
                    backlog: watch.backlog,
                    live: watch.live,
                    ..Session::new(self, row, form, include)
                },
                // Told in the stream, as upstream does, where clients look for it.
                Err(error) if error.code == 410 => {
                    return Ok(stream(
                        form.media,
                        futures::stream::once(async move { error_frame(form.media, &error) }),
                    ));
                }
                Err(error) => return Err(error),
            }
        };
        session.bookmarks = bookmarks;
        session.deadline = Instant::now() + Duration::from_secs(seconds);
        let (frames, receiver) = mpsc::channel(FRAMES);
        tokio::spawn(session.run(frames));
        Ok(stream(
            form.media,
            futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|frame| (frame, receiver))
            }),
        ))
    }
}

fn stream(media: MediaType, frames: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let body = StreamBody::new(frames.map(|frame| Ok::<_, BoxError>(Frame::data(frame))));
    let mut response = Response::new(body.boxed_unsync());
    let content_type = match media {
        MediaType::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        MediaType::Json | MediaType::Yaml => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response.extensions_mut().insert(EndsWithServer);
    response
}

/// An event around an encoded object. (YAML is never negotiated for a stream.)
fn frame(media: MediaType, kind: &str, object: &[u8]) -> Bytes {
    if media == MediaType::Protobuf {
        return codec::protobuf_watch_frame(kind, object).into();
    }
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

fn error_frame(media: MediaType, error: &StatusError) -> Bytes {
    // A Status has every form.
    frame(media, "ERROR", &answer::encode(media, &error.to_value()).unwrap_or_default())
}

/// An event around an object, or around the reason for which that can't be shown.
fn event(media: MediaType, kind: &str, object: Result<Bytes>) -> Bytes {
    match object {
        Ok(object) => frame(media, kind, &object),
        Err(error) => error_frame(media, &error),
    }
}

impl Session {
    fn new(call: Call, row: &Arc<Resource>, form: Form, include: IncludeObject) -> Self {
        Self {
            call,
            row: row.clone(),
            form,
            include,
            initial: Vec::new(),
            backlog: Vec::new(),
            live: mpsc::channel(1).1,
            initial_end: None,
            bookmarks: false,
            deadline: Instant::now(),
        }
    }

    fn presenter(&self) -> Presenter<'_> {
        Presenter { row: &self.row, version: &self.call.info.version, form: self.form, include: self.include }
    }

    /// The frame of an event, shared with every watcher that sees it alike.
    fn encode(&self, message: &WatchMessage, first: bool) -> Option<Bytes> {
        let presenter = self.presenter();
        let kind = message.kind;
        message.event.frame(kind, presenter.shape_key(first), |object| {
            event(self.form.media, kind.as_str(), presenter.object(object, first))
        })
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let gvk = self.row.gvk(&self.call.info.version);
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form.shape {
            Shape::Object => json!({"kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata}),
            Shape::PartialMetadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            }),
            Shape::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
                "metadata": {"resourceVersion": revision.to_string()},
                "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
        };
        event(self.form.media, "BOOKMARK", answer::encode(self.form.media, &object))
    }

    /// Sends everything until the time is over, the client is gone, or the watcher was dropped.
    async fn run(mut self, frames: mpsc::Sender<Bytes>) {
        self.call.core.metrics.watches.inc();
        // Over everything: a client that stopped reading holds up `send`, and must not hold its queue for ever.
        let _over = tokio::time::timeout_at(self.deadline, self.send_all(&frames)).await;
        self.call.core.metrics.watches.dec();
    }

    /// `None` when there is nobody to send to any more.
    async fn send_all(&mut self, frames: &mpsc::Sender<Bytes>) -> Option<()> {
        let mut first = true;
        for object in std::mem::take(&mut self.initial) {
            let bytes = self.presenter().object(&object, first);
            frames.send(event(self.form.media, EventType::Added.as_str(), bytes)).await.ok()?;
            first = false;
        }
        if let Some(revision) = self.initial_end.take() {
            frames.send(self.bookmark(revision, true)).await.ok()?;
        }
        for message in std::mem::take(&mut self.backlog) {
            self.send(frames, &message, &mut first).await?;
        }
        let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
        loop {
            tokio::select! {
                message = self.live.recv() => self.send(frames, &message?, &mut first).await?,
                _ = bookmarks.tick(), if self.bookmarks => {
                    // What was applied by now is in the queue by now: first the queue, then the bookmark.
                    let revision = self.call.core.cache.applied();
                    while let Ok(message) = self.live.try_recv() {
                        self.send(frames, &message, &mut first).await?;
                    }
                    frames.send(self.bookmark(revision, false)).await.ok()?;
                }
                () = frames.closed() => return None,
            }
        }
    }

    async fn send(
        &self,
        frames: &mpsc::Sender<Bytes>,
        message: &WatchMessage,
        first: &mut bool,
    ) -> Option<()> {
        if let Some(frame) = self.encode(message, *first) {
            *first = false;
            frames.send(frame).await.ok()?;
        }
        Some(())
    }
}
