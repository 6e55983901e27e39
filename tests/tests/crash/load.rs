//! Pods that come, change and go at random, and what each of them must be in the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use keelson_tests::images;
use keelson_tests::kubectl::Kubectl;
use keelson_tests::random::Random;
use serde_json::{Value, json};

/// Folder of the node in which containers say that they started.
pub const BOOK: &str = "/var/crash";

/// The most pods at a time.
const MOST: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One container that is probed and has volumes.
    Server,
    /// An init container, two containers, a port of the node.
    Pair,
    /// Ends by itself with code 7, and is not started again.
    Leaver,
}

impl Kind {
    /// Containers that run on.
    fn containers(self) -> &'static [&'static str] {
        match self {
            Self::Server => &["main"],
            Self::Pair => &["one", "two"],
            Self::Leaver => &[],
        }
    }
}

#[derive(Debug)]
struct Pod {
    kind: Kind,
    version: u8,
    updates: usize,
    deleted: bool,
}

/// What was asked of the API.
pub struct Load {
    kubectl: Kubectl,
    random: Random,
    pods: BTreeMap<String, Pod>,
    pub started: usize,
    pub updated: usize,
    pub deleted: usize,
}

fn image(version: u8) -> String {
    images::reference(&format!("testapp-v{version}"))
}

fn container(pod: &str, name: &str, version: u8, more: &[&str]) -> Value {
    let who = format!("{pod}.{name}");
    let args = [&["once", &who, "/crash"], more].concat();
    json!({
        "name": name, "image": image(version), "args": args,
        "volumeMounts": [{"name": "book", "mountPath": "/crash"}],
    })
}

/// The manifest of the pod with this number.
pub fn manifest(name: &str, number: usize, kind: Kind) -> Value {
    let book = json!({"name": "book", "hostPath": {"path": BOOK, "type": "DirectoryOrCreate"}});
    let long = ["--seconds", "36000"];
    let mut spec = match kind {
        Kind::Server => {
            let mut main = container(name, "main", 1, &long);
            main["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
            for (volume, path) in [("empty", "/empty"), ("config", "/config"), ("labels", "/labels")] {
                if let Some(mounts) = main["volumeMounts"].as_array_mut() {
                    mounts.push(json!({"name": volume, "mountPath": path}));
                }
            }
            json!({
                "containers": [main],
                "volumes": [
                    book,
                    {"name": "empty", "emptyDir": {}},
                    {"name": "config", "configMap": {"name": "kube-root-ca.crt"}},
                    {"name": "labels", "downwardAPI": {"items": [
                        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    ]}},
                ],
            })
        }
        Kind::Pair => {
            let mut one = container(name, "one", 1, &long);
            one["ports"] = json!([{"containerPort": 8080, "hostPort": 20_000 + number}]);
            json!({
                "initContainers": [container(name, "init", 1, &["--seconds", "0"])],
                "containers": [one, container(name, "two", 1, &long)],
                "volumes": [book],
            })
        }
        Kind::Leaver => json!({
            "restartPolicy": "Never",
            "containers": [container(name, "main", 1, &["--seconds", "1", "--code", "7"])],
            "volumes": [book],
        }),
    };
    spec["terminationGracePeriodSeconds"] = json!(5);
    // The book is root's.
    spec["securityContext"] = json!({"runAsUser": 0});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "crash"}},
        "spec": spec,
    })
}

impl Load {
    pub fn new(kubectl: Kubectl, seed: u64) -> Self {
        Self { kubectl, random: Random(seed), pods: BTreeMap::new(), started: 0, updated: 0, deleted: 0 }
    }

    fn living(&self) -> Vec<String> {
        self.pods.iter().filter(|(_, pod)| !pod.deleted).map(|(name, _)| name.clone()).collect()
    }

    /// Does one thing.
    pub fn act(&mut self) -> Result<()> {
        let living = self.living();
        let mut one = || living[usize::try_from(self.random.below(living.len() as u64)).unwrap_or(0)].clone();
        if living.len() < 3 {
            return self.start();
        }
        if living.len() >= MOST {
            let name = one();
            return self.delete(&name);
        }
        let name = one();
        match self.random.below(10) {
            0..4 => self.start(),
            4..7 => self.update(&name),
            _ => self.delete(&name),
        }
    }

    fn start(&mut self) -> Result<()> {
        let kind = [Kind::Server, Kind::Pair, Kind::Leaver][self.random.below(3) as usize];
        let name = format!("crash-{}", self.started);
        let text = manifest(&name, self.started, kind).to_string();
        self.kubectl.run_with_input(&["create", "-f", "-"], &text)?;
        self.pods.insert(name, Pod { kind, version: 1, updates: 0, deleted: false });
        self.started += 1;
        Ok(())
    }

    fn update(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.get_mut(name).context("a pod that was started")?;
        self.updated += 1;
        if pod.kind == Kind::Leaver || self.random.below(3) == 0 {
            let label = format!("n={}", self.updated);
            return self.kubectl.run(&["label", "--overwrite", "pod", name, &label]).map(drop);
        }
        pod.version = 3 - pod.version;
        pod.updates += 1;
        let set: Vec<String> =
            pod.kind.containers().iter().map(|name| format!("{name}={}", image(pod.version))).collect();
        let pod = format!("pod/{name}");
        let mut args = vec!["set", "image", &pod];
        args.extend(set.iter().map(String::as_str));
        self.kubectl.run(&args).map(drop)
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.kubectl.run(&["delete", "pod", name, "--wait=false"])?;
        self.pods.get_mut(name).context("a pod that was started")?.deleted = true;
        self.deleted += 1;
        Ok(())
    }

    /// How many containers are to run.
    pub fn running(&self) -> usize {
        self.pods.values().filter(|pod| !pod.deleted).map(|pod| pod.kind.containers().len()).sum()
    }

    /// That the API shows every pod as it must be, and none that was deleted.
    pub fn check(&self, list: &Value, book: &BTreeMap<String, usize>) -> Result<()> {
        let items = list["items"].as_array().context("a list of pods")?;
        let mut names: Vec<&str> = items.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        names.sort_unstable();
        let living = self.living();
        let mut expected: Vec<&str> = living.iter().map(String::as_str).collect();
        expected.sort_unstable();
        ensure!(names == expected, "there are {names:?}, not {expected:?}");
        for shown in items {
            let name = shown["metadata"]["name"].as_str().unwrap_or_default();
            let pod = self.pods.get(name).context("a pod that was started")?;
            self.check_pod(name, pod, shown, book).with_context(|| format!("{name}, {pod:?}"))?;
        }
        Ok(())
    }

    fn check_pod(&self, name: &str, pod: &Pod, shown: &Value, book: &BTreeMap<String, usize>) -> Result<()> {
        let statuses = shown["status"]["containerStatuses"].as_array().context("no container is shown")?;
        for status in statuses {
            let who = format!("{name}.{}", status["name"].as_str().unwrap_or_default());
            let restarts = status["restartCount"].as_u64().context("a number of restarts")?;
            let starts = book.get(&who).copied().unwrap_or_default() as u64;
            let state = &status["state"];
            if pod.kind == Kind::Leaver {
                let code = &state["terminated"]["exitCode"];
                ensure!(*code == 7 && shown["status"]["phase"] == "Failed", "{who} ended as {state}");
            } else {
                ensure!(status["ready"] == true && state["running"].is_object(), "{who} is {state}");
                ensure!(status["image"] == image(pod.version).as_str(), "{who} has {}", status["image"]);
            }
            // A container that was made, and not yet started when the agent died, counts as a restart, as upstream has it.
            ensure!(
                starts > 0 && starts <= restarts + 1,
                "{who} started {starts} times, restarts: {restarts}"
            );
        }
        Ok(())
    }

    /// That no container of any pod started more often than it was asked to.
    pub fn check_starts(&self, book: &BTreeMap<String, usize>) -> Result<()> {
        for (who, starts) in book {
            let (name, container) = who.split_once('.').context("a line without a container")?;
            let pod = self.pods.get(name).with_context(|| format!("{who} was never asked for"))?;
            let most = if pod.kind.containers().contains(&container) { 1 + pod.updates } else { 1 };
            ensure!(*starts <= most, "{who} started {starts} times: {pod:?}");
        }
        Ok(())
    }
}
