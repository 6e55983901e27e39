//! What the server serves, read anew each time: custom resources come and go.

use kube::Client;
use kube::core::ApiResource;

/// A resource of the preferred version of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its names and version.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

impl Served {
    /// Whether all of `verbs` can be done with it.
    pub fn supports(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|v| v == verb))
    }
}

/// Everything served, and what went wrong in finding out: a group whose server is down must not hide the others.
pub async fn discover(client: &Client) -> Result<(Vec<Served>, Vec<String>), kube::Error> {
    let mut served = Vec::new();
    let mut failures = Vec::new();
    let core = client.list_core_api_resources("v1").await?;
    collect("", "v1", core.resources, &mut served);
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.or_else(|| group.versions.first().cloned());
        let Some(version) = preferred else { continue };
        match client.list_api_group_resources(&version.group_version).await {
            Ok(list) => collect(&group.name, &version.version, list.resources, &mut served),
            Err(error) => {
                failures.push(format!(
                    "{}: {}",
                    version.group_version,
                    keelson_client::meta::message(&error)
                ));
            }
        }
    }
    Ok((served, failures))
}

fn collect(
    group: &str,
    version: &str,
    resources: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource>,
    served: &mut Vec<Served>,
) {
    for resource in resources.into_iter().filter(|r| !r.name.contains('/')) {
        let group = resource.group.filter(|g| !g.is_empty()).unwrap_or_else(|| group.to_owned());
        let version = resource.version.filter(|v| !v.is_empty()).unwrap_or_else(|| version.to_owned());
        let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        served.push(Served {
            resource: ApiResource { group, version, api_version, kind: resource.kind, plural: resource.name },
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        });
    }
}
