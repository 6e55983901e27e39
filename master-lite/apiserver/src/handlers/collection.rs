//! list and deletecollection.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use http::{Response, StatusCode};
use keelson_api::resources::Resource;
use keelson_store::{KeyRange, RangeRequest, StoreError};
use serde_json::{Value, json};

use super::{Call, add_warnings};
use crate::answer;
use crate::cache::{CachedObject, store_error};
use crate::delete::Deleted;
use crate::extension::Body;
use crate::filter::Filter;
use crate::keys;
use crate::status::{Result, StatusError};

/// How many objects of a collection are deleted at a time: their writes are committed together. (Upstream's
/// `--delete-collection-workers` is 1, where each waits for its own.)
const DELETED_AT_ONCE: usize = 16;

/// Where the next page begins.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Continue {
    #[serde(rename = "v")]
    version: String,
    /// Revision of the list; 0 after it was compacted: the rest is listed as it is then.
    #[serde(rename = "rv")]
    revision: u64,
    /// First key of the next page, without the resource's prefix.
    start: String,
}

const TOKEN: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

impl Continue {
    fn encode(&self) -> Result<String> {
        Ok(TOKEN.encode(serde_json::to_vec(self).map_err(StatusError::internal)?))
    }

    fn decode(text: &str) -> Result<Self> {
        let bad = |why: String| StatusError::bad_request(format!("continue key is not valid: {why}"));
        let bytes = TOKEN.decode(text).map_err(|e| bad(e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if token.version != "keelson.io/v1" || token.start.contains("..") || token.start.starts_with('/') {
            return Err(bad("unknown version or key".to_owned()));
        }
        Ok(token)
    }
}

/// 410 for a page of a revision that is compacted, with a token for the rest as it is now.
fn expired(start: &str) -> Result<StatusError> {
    const WORDS: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
    let mut error = StatusError::expired(WORDS);
    if !start.is_empty() {
        let token = Continue { version: "keelson.io/v1".to_owned(), revision: 0, start: start.to_owned() };
        error.continue_token = Some(token.encode()?);
    }
    Ok(error)
}

/// A page of objects.
struct Page {
    items: Vec<Arc<CachedObject>>,
    revision: u64,
    next: Option<String>,
    remaining: Option<u64>,
}

impl Call {
    pub(crate) fn filter(&self, row: &Arc<Resource>) -> Result<Filter> {
        let namespace = self.namespace(row);
        Filter::new(
            row,
            &self.core.storage_row(row),
            (!namespace.is_empty()).then(|| namespace.to_owned()),
            &self.info.label_selector,
            &self.info.field_selector,
        )
    }

    /// GET of a collection.
    pub(crate) async fn list(&self, row: &Arc<Resource>) -> Result<Response<Body>> {
        let presenter = self.presenter(row)?;
        let filter = self.filter(row)?;
        let page = self.page(row, &filter).await?;
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(next) = page.next {
            metadata["continue"] = next.into();
            // Unknown when a selector decides, as upstream leaves it out then.
            if let Some(remaining) = page.remaining.filter(|_| filter.is_everything()) {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        let items = page.items.iter().map(AsRef::as_ref);
        Ok(answer::encoded(StatusCode::OK, presenter.form.media, presenter.list(items, &metadata)?))
    }

    async fn page(&self, row: &Arc<Resource>, filter: &Filter) -> Result<Page> {
        let limit = usize::try_from(self.query.number("limit")?.unwrap_or(0).max(0)).unwrap_or(usize::MAX);
        let asked = self.query.resource_version()?;
        let rule = self.query.get("resourceVersionMatch").unwrap_or_default();
        if !rule.is_empty() && asked.is_none() {
            return Err(StatusError::new(
                422,
                "Invalid",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if let Some(token) = self.query.get("continue").filter(|t| !t.is_empty()) {
            if asked.is_some_and(|version| version != 0) {
                return Err(StatusError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Continue::decode(token)?;
            let revision = match token.revision {
                0 => self.core.store().current_revision().await.map_err(store_error)?,
                revision => revision,
            };
            return self.page_at(row, filter, revision, token.start, limit).await;
        }
        match (rule, asked) {
            ("Exact", Some(0)) => {
                return Err(StatusError::new(
                    422,
                    "Invalid",
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            ("Exact", Some(revision)) => {
                self.core.cache.wait(revision).await?;
                return self.page_at(row, filter, revision, String::new(), limit).await;
            }
            ("" | "NotOlderThan", _) => {}
            (other, _) => {
                return Err(StatusError::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        }
        self.wait_for_version().await?;
        let cache = self.core.cache.resource(&row.storage).ok_or_else(StatusError::no_such_path)?;
        let applied = self.core.cache.applied();
        let (mut objects, revision) = cache.select(filter, applied);
        // resourceVersion=0 asks for whatever is in memory: pages would only cost more.
        let (mut next, mut remaining) = (None, None);
        if limit > 0 && objects.len() > limit && asked != Some(0) {
            let first = &objects[limit];
            let start = if first.namespace.is_empty() {
                first.name.clone()
            } else {
                format!("{}/{}", first.namespace, first.name)
            };
            let token = Continue { version: "keelson.io/v1".to_owned(), revision, start };
            next = Some(token.encode()?);
            remaining = u64::try_from(objects.len() - limit).ok();
            objects.truncate(limit);
        }
        Ok(Page { items: objects, revision, next, remaining })
    }

    /// A page of the state at a past revision, from the store's history.
    async fn page_at(
        &self,
        row: &Arc<Resource>,
        filter: &Filter,
        revision: u64,
        start: String,
        limit: usize,
    ) -> Result<Page> {
        let storage = self.core.storage_row(row);
        let all = keys::prefix(&row.storage, None);
        let prefix = keys::prefix(&row.storage, filter.namespace.as_deref());
        let mut from = format!("{all}{start}").max(prefix.clone());
        let mut items = Vec::new();
        loop {
            let wanted = if limit == 0 { 0 } else { limit - items.len() + 1 };
            let request = RangeRequest {
                range: KeyRange::prefix_from(&prefix, from.clone()),
                limit: wanted,
                revision: Some(revision),
            };
            let found = match self.core.store().range(request).await {
                Ok(found) => found,
                Err(StoreError::Compacted { .. }) => {
                    return Err(expired(from.strip_prefix(&all).unwrap_or_default())?);
                }
                Err(other) => return Err(store_error(other)),
            };
            let count = found.kvs.len();
            let left = found.count.saturating_sub(u64::try_from(count).unwrap_or(0));
            for kv in found.kvs {
                let Some(rest) = kv.key.strip_prefix(&all) else { continue };
                if limit > 0 && items.len() == limit {
                    let token =
                        Continue { version: "keelson.io/v1".to_owned(), revision, start: rest.to_owned() };
                    return Ok(Page {
                        items,
                        revision,
                        next: Some(token.encode()?),
                        remaining: Some(left + 1),
                    });
                }
                from = format!("{}\0", kv.key);
                if let Some(object) = CachedObject::read(&storage, rest, &kv.value, kv.mod_revision)
                    && filter.matches(&object)
                {
                    items.push(Arc::new(object));
                }
            }
            if left == 0 || limit == 0 {
                return Ok(Page { items, revision, next: None, remaining: None });
            }
        }
    }

    /// How it went for one object of a collection, and what webhooks warned of.
    async fn delete_one(
        &self,
        row: &Arc<Resource>,
        body: &Bytes,
        object: &CachedObject,
    ) -> Result<(Result<Deleted>, Vec<String>)> {
        let mut deletion = self.deletion(row, body)?;
        deletion.namespace = &object.namespace;
        let outcome = deletion.run(&object.name).await;
        Ok((outcome, deletion.hooks.take_warnings()))
    }

    /// DELETE of a collection: each as if it were deleted by name, some of them at a time.
    pub(crate) async fn delete_collection(&self, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
        let filter = self.filter(row)?;
        self.core.cache.wait_newest().await?;
        let cache = self.core.cache.resource(&row.storage).ok_or_else(StatusError::no_such_path)?;
        let (objects, revision) = cache.select(&filter, self.core.cache.applied());
        let presenter = self.core.presenter(row, &self.info.version);
        let mut items: Vec<Value> = Vec::new();
        let mut warnings = Vec::new();
        for some in objects.chunks(DELETED_AT_ONCE) {
            let deletions = some.iter().map(|object| self.delete_one(row, &body, object).boxed());
            for outcome in join_all(deletions).await {
                let (outcome, warned) = outcome?;
                warnings.extend(warned);
                match outcome {
                    Ok(Deleted::Gone(value) | Deleted::Pending(value)) => {
                        items.push(presenter.convert(value))
                    }
                    Err(error) if error.code == 404 => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let gvk = row.gvk(&self.info.version);
        let mut response = self.respond(
            StatusCode::OK,
            &json!({
                "kind": row.list_kind(), "apiVersion": gvk.api_version(),
                "metadata": {"resourceVersion": revision.to_string()}, "items": items,
            }),
        )?;
        add_warnings(&mut response, &warnings);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let token = Continue { version: "keelson.io/v1".into(), revision: 5, start: "ns/a".into() };
        assert_eq!(Continue::decode(&token.encode().unwrap()).unwrap(), token);
        for bad in ["", "x", "e30", "!!"] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
