//! From a request to an answer: authenticate, authorize, limit, dispatch.

mod collection;
mod connect;
mod eviction;
mod nonresource;
mod object;
mod openapi;
mod special;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use keelson_api::codec::{self, MediaType};
use keelson_api::resources::Resource;
use serde_json::Value;

use crate::aggregator;
use crate::answer;
use crate::authz::forbidden;
use crate::core::Core;
use crate::extension::{
    AuthorizerAttributes, Body, Decision, InProcessUser, RequestContext, RequestInfo, UserInfo,
};
use crate::negotiate::{self, Form, Offer};
use crate::options::Query;
use crate::present::{IncludeObject, Presenter};
use crate::request_info::parse_query;
use crate::status::{Result, StatusError};
use crate::websocket::{Content, Upgrade};

pub(crate) use special::{scale_of, selector_text, set_at};

/// Most bytes of a request's body, as upstream has it.
const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// Upstream's `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A request past authentication and authorization.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) info: RequestInfo,
    pub(crate) user: UserInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    /// How the answer is to look.
    pub(crate) form: Form,
}

/// Answers one request. Never fails: errors are Status answers.
///
/// Boxed, so that the depth of the request path's types ends here.
pub fn handle(core: Arc<Core>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
    Box::pin(answer(core, request))
}

async fn answer(core: Arc<Core>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let info = RequestInfo::parse(request.method(), request.uri().path(), request.uri().query());
    let known =
        info.is_resource_request && core.table().find(&info.group, &info.version, &info.resource).is_some();
    let observed = info.clone();
    let headers = request.headers().clone();
    let response = match run(core.clone(), info, request).await {
        Ok(response) => response,
        Err(error) => status_response(&error, negotiate::error_media(&headers)),
    };
    let response = answer::compress(&headers, response).await;
    core.metrics.observe(&observed, known, response.status().as_u16(), started.elapsed());
    response
}

async fn run(core: Arc<Core>, info: RequestInfo, request: Request<Body>) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let user = match parts.extensions.remove::<InProcessUser>() {
        Some(InProcessUser(user)) => user,
        None => {
            core.extensions.authenticator.authenticate(&parts).await?.ok_or_else(StatusError::unauthorized)?
        }
    };
    let attributes = AuthorizerAttributes::from_request(&user, &info);
    match core.extensions.authorizer.authorize(&attributes).await {
        Decision::Allow => {}
        Decision::Deny(why) | Decision::NoOpinion(why) => return Err(forbidden(&attributes, &why)),
    }
    let query = Query(parts.uri.query().map(parse_query).unwrap_or_default());
    let call =
        Call { core: core.clone(), info, user, query, headers: parts.headers.clone(), form: Form::JSON };
    let request = Request::from_parts(parts, body);

    let watch = call.info.verb == "watch";
    let connect = special::connector(&call).is_some();
    if watch || connect {
        return call.dispatch(request).await;
    }
    let _slot = core.in_flight.enter(request.method(), &call.user).await?;
    match tokio::time::timeout(REQUEST_TIMEOUT, call.dispatch(request)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(StatusError::timeout("request did not complete within the allotted timeout")),
    }
}

impl Call {
    async fn dispatch(mut self, mut request: Request<Body>) -> Result<Response<Body>> {
        if let Some(remote) = self.core.aggregator.remote(&self.info) {
            return aggregator::forward(&self, &remote, request).await;
        }
        if openapi::is_openapi(&self.info.path) && request.method() == http::Method::GET {
            return openapi::answer(&self).await;
        }
        if !self.info.is_resource_request {
            return nonresource::answer(&self, request.method());
        }
        let table = self.core.table();
        let Some(row) = table.find(&self.info.group, &self.info.version, &self.info.resource) else {
            return Ok(nonresource::no_such_page());
        };
        let row = row.clone();
        // A namespace where there may be none, or none where one must be, is another path altogether.
        let has_namespace = !self.info.namespace.is_empty();
        let all_namespaces = matches!(self.info.verb.as_str(), "list" | "watch");
        if (row.namespaced && !has_namespace && !all_namespaces && !row.is_virtual)
            || (!row.namespaced && has_namespace && self.info.resource != "namespaces")
        {
            return Ok(nonresource::no_such_page());
        }
        let mut upgrade = None;
        if special::connector(&self).is_none() {
            let watch = self.info.verb == "watch";
            if watch {
                upgrade = Upgrade::of(&mut request, Content::Events)?;
            }
            // Events go over a WebSocket as text.
            let protobuf = codec::has_protobuf(&row.gvk(&self.info.version)) && upgrade.is_none();
            // An answer that is no stored object has neither rows nor metadata.
            let key = (row.group_resource(), self.info.subresource.clone());
            let is_computed = self.core.extensions.virtual_resources.contains_key(&key);
            let offer = Offer { protobuf, shapes: !is_computed };
            // Before anything is done: who can't take the answer gets 406 and no change.
            self.form = match watch {
                true => negotiate::stream_form(&self.headers, offer)?,
                false => negotiate::form(&self.headers, offer)?,
            };
        }
        if let Some(custom) = row.custom.as_ref().filter(|custom| custom.terminating)
            && self.info.verb == "create"
        {
            tracing::debug!(definition = %custom.definition, "no new objects of a definition that goes");
            let mut error = StatusError::method_not_supported(&row.group_resource(), "create");
            error.message = "create not allowed while custom resource definition is terminating".to_owned();
            return Err(error);
        }
        let mut answer = special::route(&self, &row, request).await?;
        if let Some(warning) = row.custom.as_ref().and_then(|custom| custom.warning.clone()) {
            add_warnings(&mut answer, &[warning]);
        }
        match upgrade {
            Some(upgrade) => upgrade.answer(answer),
            None => Ok(answer),
        }
    }

    /// The view in the form the client wants.
    pub(crate) fn presenter<'a>(&'a self, row: &'a Resource) -> Result<Presenter<'a>> {
        let include = IncludeObject::parse(self.query.get("includeObject"))
            .ok_or_else(|| StatusError::bad_request("includeObject: Unsupported value: supported values: \"\", \"Metadata\", \"None\", \"Object\""))?;
        Ok(Presenter { row, version: &self.info.version, form: self.form, include })
    }

    /// An answer of a tree, encoded as the client wants it.
    pub(crate) fn respond(&self, code: StatusCode, value: &Value) -> Result<Response<Body>> {
        Ok(answer::encoded(code, self.form.media, answer::encode(self.form.media, value)?))
    }

    /// Namespace for keys: empty for cluster-scoped resources (where the parser puts a namespace's own name).
    pub(crate) fn namespace<'a>(&'a self, row: &Resource) -> &'a str {
        if row.namespaced { &self.info.namespace } else { "" }
    }

    pub(crate) fn context(&self, dry_run: bool) -> RequestContext {
        RequestContext {
            info: self.info.clone(),
            user: self.user.clone(),
            query: self.query.0.clone(),
            dry_run,
        }
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json")
    }
}

/// Reads a whole body within the limit.
pub(crate) async fn read_body(mut body: Body) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| StatusError::bad_request(format!("error reading the body: {error}")))?;
        if let Some(data) = frame.data_ref() {
            if whole.len() + data.len() > BODY_LIMIT {
                return Err(StatusError::too_large(BODY_LIMIT));
            }
            whole.extend_from_slice(data);
        }
    }
    Ok(whole.freeze())
}

/// Adds `Warning` headers (RFC 7234 section 5.5, agent `-`, code 299).
pub(crate) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// An error as an answer.
pub fn status_response(error: &StatusError, media: MediaType) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let status = error.to_value();
    let (media, body) = match answer::encode(media, &status) {
        Ok(body) => (media, body),
        Err(_no_such_form) => (MediaType::Json, status.to_string().into()),
    };
    let mut response = answer::encoded(code, media, body);
    if let Some(seconds) = error.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
