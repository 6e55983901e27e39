//! API aggregation (`k8s.io/kube-aggregator`): groups and versions that other servers serve, behind this one.
//!
//! An APIService says who serves a version of a group. One without a service stands for this server; those are made
//! and kept here ([`register`]). Requests for the others are authenticated and authorized here and then sent on
//! ([`proxy`]), over TLS with a client certificate of the front proxy, which is why the server behind believes what is
//! said of the user. One task for each of the others looks whether its server answers ([`availability`]) and what it
//! serves ([`document`]); discovery shows all of it as one ([`groups`]).

mod availability;
mod document;
mod groups;
mod proxy;
mod register;
mod remote;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use keelson_api::custom::names;
use keelson_api::meta::GroupResource;
use keelson_api::resources::REGISTRATION_GROUP;
use keelson_api::resources::strategies::local_condition;
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::Notify;

use crate::backend_tls::Identity;
use crate::core::Core;
use crate::extension::UserInfo;
use crate::follow;
use crate::kubelet_proxy::Dialer;
use crate::options::WriteOptions;
use crate::pki::{Pki, PkiError};
use crate::request_info::RequestInfo;
use crate::status::{Result, StatusError};
use crate::write::{Ownership, SERVER, Write, now};

pub use groups::{ServedGroup, ServedVersion};
pub(crate) use proxy::forward;
pub(crate) use register::keep;
pub(crate) use remote::Remote;

/// Version in which APIServices are served and stored.
const VERSION: &str = "v1";
/// The condition that says whether a server answers.
const AVAILABLE: &str = "Available";

fn api_services() -> GroupResource {
    GroupResource::new(REGISTRATION_GROUP, "apiservices")
}

/// The way to servers of other groups: through the nodes of their pods, as the front proxy.
pub struct FrontProxy {
    dialer: Arc<Dialer>,
    identity: Identity,
}

impl FrontProxy {
    /// # Errors
    /// When the front proxy's certificate can't be used.
    pub fn new(pki: &Pki, dialer: Arc<Dialer>) -> std::result::Result<Self, PkiError> {
        Ok(Self { dialer, identity: pki.front_proxy_client()? })
    }

    fn identity(&self) -> Identity {
        (self.identity.0.clone(), self.identity.1.clone_key())
    }
}

/// Those served elsewhere, by group and version.
type Remotes = BTreeMap<(String, String), Arc<Remote>>;

/// What the server knows of the others.
#[derive(Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Arc<Remotes>>,
    /// The table of resources is another one.
    pub(crate) table_changed: Arc<Notify>,
}

impl Aggregator {
    /// Who serves a request, if not this server.
    pub(crate) fn remote(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let remotes = self.remotes.read().clone();
        if remotes.is_empty() {
            return None;
        }
        if info.is_resource_request {
            return remotes.get(&(info.group.clone(), info.version.clone())).cloned();
        }
        remotes.get(&version_at(&info.path)?).cloned()
    }

    /// Ends what looks after the others.
    pub(crate) fn leave(&self) {
        self.all().values().for_each(|remote| remote.leave());
    }

    fn all(&self) -> Arc<Remotes> {
        self.remotes.read().clone()
    }
}

/// Group and version of a path that is nothing more: `/api/v1`, `/apis/GROUP/VERSION`, and the same below `/openapi/v3`.
fn version_at(path: &str) -> Option<(String, String)> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut parts = path.trim_matches('/').split('/');
    let found = match (parts.next()?, parts.next()?, parts.next()) {
        ("api", version, None) => (String::new(), version.to_owned()),
        ("apis", group, Some(version)) => (group.to_owned(), version.to_owned()),
        _ => return None,
    };
    parts.next().is_none().then_some(found)
}

impl Core {
    /// All groups that clients see, the preferred one first.
    pub(crate) fn groups(&self) -> Vec<ServedGroup> {
        let services = match self.cache.resource(&api_services()) {
            Some(cache) => cache.snapshot(None).iter().map(|service| service.value()).collect(),
            None => Vec::new(),
        };
        groups::groups(&self.table(), &services, &self.aggregator.all())
    }
}

/// Follows APIServices until the server is gone.
pub(crate) async fn follow(core: Weak<Core>) {
    follow::follow(core, api_services(), |core| Box::pin(step(core))).await;
}

/// One look at all of them. False if something is left to do.
async fn step(core: &Arc<Core>) -> bool {
    let Some(cache) = core.cache.resource(&api_services()) else { return true };
    let stored: Vec<Arc<Value>> = cache.snapshot(None).iter().map(|object| object.value()).collect();
    let old = core.aggregator.all();
    let mut new = Remotes::new();
    let mut made = Vec::new();
    let mut finished = true;
    for object in &stored {
        if object["spec"]["service"].is_null() {
            finished &= mark_local(core, object).await;
            continue;
        }
        let Some(spec) = remote::Spec::read(object) else { continue };
        let key = (spec.group.clone(), spec.version.clone());
        let remote = match old.get(&key) {
            Some(known) if known.spec == spec => known.clone(),
            _ => {
                let remote = Arc::new(Remote::new(spec, core.extensions.front_proxy.as_deref()));
                made.push(remote.clone());
                remote
            }
        };
        remote.saw(object);
        new.insert(key, remote);
    }
    // Those that are no longer there end with the last request to them.
    *core.aggregator.remotes.write() = Arc::new(new);
    for (key, remote) in old.iter() {
        if !core.aggregator.all().get(key).is_some_and(|new| Arc::ptr_eq(new, remote)) {
            remote.leave();
        }
    }
    for remote in made {
        remote.attend(core);
    }
    finished
}

/// What this server serves is always available. False if that could not be written.
async fn mark_local(core: &Core, object: &Value) -> bool {
    let wanted = local_condition(&now());
    let text = |key: &str| wanted[key].as_str().unwrap_or_default().to_owned();
    let condition = Condition { status: "True", reason: "Local", message: text("message") };
    match condition.write(core, object).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(service = %object["metadata"]["name"], %error, "marking a local APIService failed");
            false
        }
    }
}

/// What is said of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn is_available(&self) -> bool {
        self.status == "True"
    }

    fn says_the_same_as(&self, condition: &Value) -> bool {
        condition["status"] == self.status
            && condition["reason"] == self.reason
            && condition["message"] == self.message.as_str()
    }

    /// Writes it into the status of an APIService, unless the object says so already.
    async fn write(&self, core: &Core, object: &Value) -> Result<()> {
        if names::condition(object, AVAILABLE).is_some_and(|old| self.says_the_same_as(old)) {
            return Ok(());
        }
        let table = core.table();
        let row = table.get(&api_services()).ok_or_else(StatusError::no_such_path)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let uid = &object["metadata"]["uid"];
        tracing::info!(service = name, status = self.status, reason = self.reason, message = %self.message, "availability of an APIService");
        let make = |current: &Value| {
            if current["metadata"]["uid"] != *uid {
                return Err(StatusError::not_found(&api_services(), name));
            }
            let mut new = current.clone();
            names::set_condition(&mut new, AVAILABLE, self.status, self.reason, &self.message, &now());
            Ok((new, Vec::new()))
        };
        match write_of(core, row, "status").update(name, Ownership::Compare, &make).await {
            // Gone, or made anew: the change tells.
            Err(error) if matches!(error.code, 404 | 409) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// The server's own write of an APIService.
fn write_of<'w>(
    core: &'w Core,
    row: &'w Arc<keelson_api::resources::Resource>,
    subresource: &'w str,
) -> Write<'w> {
    Write {
        core,
        row,
        version: VERSION,
        namespace: "",
        subresource,
        user: UserInfo::apiserver(),
        manager: SERVER.to_owned(),
        options: WriteOptions::own(),
        view: crate::extension::HookView::Row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_paths() {
        let check = |path: &str, wanted: Option<(&str, &str)>| {
            let found = version_at(path);
            assert_eq!(found.as_ref().map(|(g, v)| (g.as_str(), v.as_str())), wanted, "{path}");
        };
        check("/apis/example.com/v1", Some(("example.com", "v1")));
        check("/apis/example.com/v1/", Some(("example.com", "v1")));
        check("/openapi/v3/apis/example.com/v1", Some(("example.com", "v1")));
        check("/api/v1", Some(("", "v1")));
        for path in
            ["/apis", "/apis/example.com", "/apis/example.com/v1/things", "/api", "/version", "/openapi/v3"]
        {
            check(path, None);
        }
    }
}
