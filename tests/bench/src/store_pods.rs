//! Pods that are only stored: no scheduler takes them.

use std::path::PathBuf;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::objects;

/// What to store.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The first part of the pods' names.
    #[arg(long)]
    name: String,
    /// How many.
    #[arg(long)]
    pods: usize,
    /// Requests at a time.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
}

/// Stores them.
pub async fn run(args: &Args) -> Result<()> {
    let api: Api<Pod> = Api::default_namespaced(crate::client(&args.kubeconfig).await?);
    futures::stream::iter(0..args.pods)
        .map(|n| {
            let api = &api;
            async move {
                let labels = json!({"app": args.name, "tier": "backend"});
                let pod: Pod = serde_json::from_value(objects::pod(&format!("{}-{n}", args.name), &labels))?;
                api.create(&PostParams::default(), &pod).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(args.at_once)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}
