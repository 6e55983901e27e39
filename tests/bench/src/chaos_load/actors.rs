//! Who writes what: each goes around for as long as the load runs.

use std::time::Duration;

use keelson_tests::random::Random;
use serde_json::{Value, json};

use super::client::Writer;
use super::{Args, stopping};

/// ConfigMaps that each writer goes around.
const NAMES: u64 = 8;
/// The most bare pods, and the most jobs, at a time.
const MOST_PODS: usize = 8;
const MOST_JOBS: usize = 12;
const GRACE: u64 = 3;

/// Images by their use.
#[derive(Clone)]
pub struct Images {
    versions: [String; 2],
    pulled: String,
}

impl Images {
    pub fn of(args: &Args) -> Self {
        Self { versions: [args.image.clone(), args.other_image.clone()], pulled: args.pulled_image.clone() }
    }
}

/// Sleeps, but not longer than the load runs.
async fn rest(time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while !stopping() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50).min(time)).await;
    }
}

/// Makes, changes and deletes ConfigMaps.
pub async fn config_maps(mut writer: Writer, number: usize, pause: Duration) {
    let mut ticks = tokio::time::interval(pause);
    // What was missed while there was no server is not made up for: the rate stays bounded.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0.. {
        ticks.tick().await;
        if stopping() {
            return;
        }
        let name = format!("w{number}-{}", n % NAMES);
        if !writer.has(&name) {
            writer.create(&name, json!({"data": {"text": "x".repeat(200)}})).await;
        } else if n % 3 == 0 {
            writer.delete(&name).await;
        } else {
            writer.change(&name, json!({})).await;
        }
    }
}

fn serving(app: &str, image: &str, pull: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": GRACE,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": pull,
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            }],
        },
    })
}

fn replicated(app: &str, replicas: u64, image: &str, pull: &str) -> Value {
    json!({"spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": serving(app, image, pull),
    }})
}

/// One Deployment that is scaled and rolled, one whose pods are pulled anew.
pub async fn deployments(mut writer: Writer, images: Images, seed: u64) {
    let mut random = Random(seed);
    writer.create("web", replicated("web", 4, &images.versions[0], "IfNotPresent")).await;
    writer.create("pulled", replicated("pulled", 2, &images.pulled, "Always")).await;
    for n in 0_usize.. {
        rest(Duration::from_millis(random.between(2_000, 5_000))).await;
        if stopping() {
            return;
        }
        // Until both are there; then in turn.
        if !writer.has("web") || !writer.has("pulled") {
            let (app, image, pull) = if writer.has("web") {
                ("pulled", &images.pulled, "Always")
            } else {
                ("web", &images.versions[0], "IfNotPresent")
            };
            writer.create(app, replicated(app, 2, image, pull)).await;
            continue;
        }
        match n % 4 {
            0 => {
                let image = &images.versions[(n / 4 + 1) % 2];
                let container = json!({"name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}});
                let template = json!({"spec": {"containers": [container]}});
                writer.change("web", json!({"spec": {"template": template}})).await;
            }
            2 => {
                let restart = json!({"metadata": {"annotations": {"round": n.to_string()}}});
                writer.change("pulled", json!({"spec": {"template": restart}})).await;
            }
            _ => {
                let replicas = random.between(3, 6);
                writer.change("web", json!({"spec": {"replicas": replicas}})).await;
            }
        }
    }
}

/// A StatefulSet that is rolled.
pub async fn stateful_set(mut writer: Writer, images: Images) {
    for n in 0.. {
        if stopping() {
            return;
        }
        if writer.has("db") {
            let round = json!({"metadata": {"annotations": {"round": n.to_string()}}});
            writer.change("db", json!({"spec": {"template": round}})).await;
        } else {
            let mut body = replicated("db", 2, &images.versions[0], "IfNotPresent");
            body["spec"]["serviceName"] = json!("db");
            writer.create("db", body).await;
        }
        rest(Duration::from_secs(12)).await;
    }
}

/// Jobs, of which old ones are deleted.
pub async fn jobs(mut writer: Writer, images: Images) {
    let mut made = std::collections::VecDeque::new();
    for n in 0.. {
        if stopping() {
            return;
        }
        let name = format!("job-{n}");
        writer
            .create(
                &name,
                json!({"spec": {"template": {"spec": {
                    "restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE,
                    "containers": [{
                        "name": "main", "image": images.versions[n % 2], "imagePullPolicy": "IfNotPresent",
                        "args": ["count", "--per-second", "20", "--seconds", "2"],
                    }],
                }}}}),
            )
            .await;
        made.push_back(name);
        while made.len() > MOST_JOBS
            && let Some(name) = made.pop_front()
        {
            if writer.has(&name) {
                writer.delete(&name).await;
            }
        }
        rest(Duration::from_secs(3)).await;
    }
}

/// Bare pods that come, change and go.
pub async fn pods(mut writer: Writer, images: Images, seed: u64) {
    let mut random = Random(!seed);
    for n in 0.. {
        rest(Duration::from_millis(random.between(200, 1_200))).await;
        if stopping() {
            return;
        }
        let names = writer.names();
        let one = |random: &mut Random| {
            names[usize::try_from(random.below(names.len() as u64)).unwrap_or_default()].clone()
        };
        let choice = match names.len() {
            0..3 => 0,
            MOST_PODS.. => 9,
            _ => random.below(10),
        };
        match choice {
            0..4 => {
                let mut body = serving("bare", &images.versions[n % 2], "IfNotPresent");
                body["spec"]["volumes"] = json!([
                    {"name": "empty", "emptyDir": {}},
                    {"name": "config", "configMap": {"name": "kube-root-ca.crt"}},
                ]);
                body["spec"]["containers"][0]["volumeMounts"] = json!([
                    {"name": "empty", "mountPath": "/empty"},
                    {"name": "config", "mountPath": "/config"},
                ]);
                writer.create(&format!("bare-{n}"), body).await;
            }
            4..7 => {
                let name = one(&mut random);
                writer.change(&name, json!({"metadata": {"labels": {"round": n.to_string()}}})).await;
            }
            _ => {
                let name = one(&mut random);
                writer.delete(&name).await;
            }
        }
    }
}

/// On each node a pod that counts, for its log.
pub async fn counters(mut writer: Writer, images: Images, nodes: usize) {
    for node in 1..=nodes {
        let body = json!({"spec": {
            "nodeName": format!("node-{node}"), "restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE,
            // Whatever becomes of the node.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": images.versions[0], "imagePullPolicy": "IfNotPresent",
                "args": ["count", "--per-second", "20", "--seconds", "86400"],
            }],
        }});
        writer.create(&format!("count-{node}"), body).await;
    }
    while !stopping() {
        rest(Duration::from_secs(1)).await;
    }
}
