//! Writing the status of an object.

use std::fmt::Debug;

use keelson_client::meta;
use kube::api::PostParams;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;

/// Writes the status that `set` gives to `object`; after a conflict once more, onto the newest version. The object
/// as written, or none if it is gone or another has its name.
///
/// # Errors
/// What the API says.
pub async fn write_status<K>(api: &Api<K>, object: &K, set: impl Fn(&mut K)) -> Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    let name = meta::name(object.meta());
    let params = PostParams::default();
    let mut target = object.clone();
    set(&mut target);
    match api.replace_status(name, &params, &target).await {
        Ok(written) => return Ok(Some(written)),
        Err(error) if meta::is_not_found(&error) => return Ok(None),
        Err(error) if !meta::is_conflict(&error) => return Err(error.into()),
        Err(_) => {}
    }
    let Some(mut target) = api.get_opt(name).await? else { return Ok(None) };
    if target.meta().uid != object.meta().uid {
        return Ok(None);
    }
    set(&mut target);
    Ok(Some(api.replace_status(name, &params, &target).await?))
}
