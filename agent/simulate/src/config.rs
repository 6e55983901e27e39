//! What is simulated.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

use crate::plan::Plan;

/// The nodes, all alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How many.
    pub nodes: u32,
    /// Beginning of their names, followed by their number from 0 on.
    pub prefix: String,
    /// Kubeconfig of a user who may impersonate them.
    pub kubeconfig: PathBuf,
    /// CPUs of each.
    pub cpus: u64,
    /// Bytes of memory of each.
    pub memory: u64,
    /// Bytes of disk of each.
    pub storage: u64,
    /// Most pods on each.
    pub pods: u32,
    /// Labels of each, beside [`LABEL`](crate::fleet::LABEL).
    pub labels: BTreeMap<String, String>,
    /// Zones that they are spread over; 0 for none.
    pub zones: u32,
    /// Taints of each.
    pub taints: Vec<Taint>,
    /// Address that all report.
    pub address: IpAddr,
    /// What pods do, unless their annotations say otherwise.
    pub plan: Plan,
    /// Folder for their files; none for a temporary one.
    pub files: Option<PathBuf>,
}
