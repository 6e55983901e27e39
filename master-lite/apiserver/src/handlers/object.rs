//! get, create, update, patch, delete of one object.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use keelson_api::resources::Resource;
use serde_json::{Value, json};

use super::{Call, add_warnings};
use crate::answer;
use crate::delete::{Delete, Deleted};
use crate::extension::{Body, HookView, Hooks};
use crate::options::{DeleteOptions, OptionsKind, WriteOptions};
use crate::status::{Result, StatusError};
use crate::wire::{self, PatchKind};
use crate::write::{Configuration, Ownership, Write, Written};

impl Call {
    /// The write path for this request.
    pub(crate) fn write<'a>(&'a self, row: &'a Arc<Resource>, options: OptionsKind) -> Result<Write<'a>> {
        let options = WriteOptions::parse(&self.query, options)?;
        let agent =
            self.headers.get(header::USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()));
        Ok(Write {
            core: &self.core,
            row,
            version: &self.info.version,
            namespace: self.namespace(row),
            subresource: &self.info.subresource,
            user: self.user.clone(),
            manager: options.manager_or_agent(&agent.unwrap_or_default()),
            options,
            view: HookView::Row,
        })
    }

    /// Waits until reads may be answered, by `resourceVersion`.
    pub(crate) async fn wait_for_version(&self) -> Result<()> {
        match self.query.resource_version()? {
            None => self.core.cache.wait_newest().await,
            Some(0) => Ok(()),
            Some(version) => self.core.cache.wait(version).await,
        }
    }

    /// GET of one object.
    pub(crate) async fn get(&self, row: &Arc<Resource>) -> Result<Response<Body>> {
        let presenter = self.presenter(row)?;
        self.wait_for_version().await?;
        let cache = self.core.cache.resource(&row.storage);
        let object = cache
            .as_ref()
            .and_then(|cache| cache.get(self.namespace(row), &self.info.name))
            .ok_or_else(|| StatusError::not_found(&row.group_resource(), &self.info.name))?;
        Ok(answer::encoded(StatusCode::OK, presenter.form.media, presenter.object(&object, true)?))
    }

    /// POST of a new object.
    pub(crate) async fn create(&self, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
        let write = self.write(row, OptionsKind::Create)?;
        let (object, warnings) = wire::decode_object(
            self.content_type(),
            &body,
            row,
            &self.info.version,
            write.options.validation,
        )?;
        let written = write.create(object, Ownership::Compare, warnings).await?;
        self.written(row, written)
    }

    /// PUT.
    pub(crate) async fn update(&self, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
        let write = self.write(row, OptionsKind::Update)?;
        let (object, warnings) = wire::decode_object(
            self.content_type(),
            &body,
            row,
            &self.info.version,
            write.options.validation,
        )?;
        let name = &self.info.name;
        let make = |_: &Value| Ok((object.clone(), warnings.clone()));
        let result = write.update(name, Ownership::Compare, &make).await;
        match result {
            Err(error)
                if error.code == 404
                    && self.info.subresource.is_empty()
                    && row.strategy.allow_create_on_update() =>
            {
                let mut object = object;
                let has_version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !matches!(has_version, "" | "0") {
                    return Err(error);
                }
                if let Some(meta) = crate::stored::metadata_mut(&mut object) {
                    meta.remove("resourceVersion");
                    meta.insert("name".to_owned(), name.as_str().into());
                }
                write.authorize_create(name).await?;
                self.written(row, write.create(object, Ownership::Compare, warnings).await?)
            }
            other => self.written(row, other?),
        }
    }

    /// PATCH.
    pub(crate) async fn patch(&self, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
        let kind = PatchKind::from_content_type(self.content_type())?;
        let write = self.write(row, kind.options())?;
        let written = match kind {
            PatchKind::Apply => {
                let (object, duplicates) = wire::parse_configuration(&body)?;
                let config = Configuration { object, force: write.options.force, duplicates };
                write.apply(&self.info.name, &config).await?
            }
            PatchKind::Change(kind) => {
                kind.check(row)?;
                let patch = wire::parse_patch(&body)?;
                let gvk = row.gvk(&self.info.version);
                let validation = write.options.validation;
                let make = |current: &Value| {
                    let mut object = wire::patch(kind, &gvk, current, &patch)?;
                    let warnings = wire::normalize_object(row, &self.info.version, &mut object, validation)?;
                    Ok((object, warnings))
                };
                write.update(&self.info.name, Ownership::Compare, &make).await?
            }
        };
        self.written(row, written)
    }

    fn written(&self, row: &Resource, written: Written) -> Result<Response<Body>> {
        let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let value = self.presenter(row)?.value(written.object, true);
        let mut response = self.respond(code, &value)?;
        add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    /// The delete path for this request.
    pub(crate) fn deletion<'a>(&'a self, row: &'a Arc<Resource>, body: &Bytes) -> Result<Delete<'a>> {
        let body = if body.is_empty() {
            None
        } else {
            Some(wire::decode_delete_options(self.content_type(), body)?)
        };
        Ok(Delete {
            core: &self.core,
            row,
            version: &self.info.version,
            namespace: self.namespace(row),
            user: self.user.clone(),
            options: DeleteOptions::parse(&self.query, body.as_ref())?,
            hooks: Hooks::default(),
        })
    }

    /// DELETE of one object.
    pub(crate) async fn delete(&self, row: &Arc<Resource>, body: Bytes) -> Result<Response<Body>> {
        let deletion = self.deletion(row, &body)?;
        let warning =
            deletion.options.propagation.is_none().then(|| row.strategy.deletion_warning()).flatten();
        let value = match deletion.run(&self.info.name).await? {
            Deleted::Pending(object) => self.presenter(row)?.value(object, true),
            // Pods come back as they were, as upstream's store is set up for them.
            Deleted::Gone(object) if row.plural == "pods" => self.presenter(row)?.value(object, true),
            Deleted::Gone(object) => {
                let mut details =
                    json!({"name": self.info.name, "kind": row.plural, "uid": object["metadata"]["uid"]});
                if !row.group.is_empty() {
                    details["group"] = row.group.as_str().into();
                }
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
            }
        };
        let mut response = self.respond(StatusCode::OK, &value)?;
        add_warnings(&mut response, warning.map(str::to_owned).as_slice());
        add_warnings(&mut response, &deletion.hooks.take_warnings());
        Ok(response)
    }
}
