//! An application of three tiers out of Debian packages, pulled from a registry that asks for a password; and what pods
//! say of images that can't be had from it.

use std::fs;

use anyhow::{Result, ensure};
use keelson_tests::images;
use keelson_tests::images::builder::{Compression, ImageBuilder};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::registry;
use keelson_tests::{cmd, paths};
use serde_json::json;

const MANIFEST: &str = include_str!("e2e_app.yaml");
/// Where something listens that never answers.
const SILENT: &str = "10.89.0.2:5001";
/// An image whose layer is not what its digest says.
const SPOILT: &str = "keelson.test/spoilt:latest";
/// Images that are imported.
const DOCKER: &str = "keelson.test/from-docker:v1";
const OCI: &str = "keelson.test/from-oci:v1";

#[test]
fn three_tiers_from_a_registry_with_a_password() -> Result<()> {
    fill_registry()?;
    let insecure = format!("{},{SILENT}", registry::agent_arg());
    let args = [insecure.as_str(), "--image-pull-progress-timeout=9s"];
    let cluster = TestCluster::up_with("e2e-app", 1, &["busybox"], &args)?;
    registry::start_with_password(&cluster)?;
    let silent = ["nc", "-ll", "-p", "5001", "-e", "sleep", "600"].map(str::to_owned);
    cluster.host("master")?.spawn_daemon("silent", &busybox()?, &silent, None)?;
    cluster.kubectl.apply(MANIFEST)?;
    import(&cluster)?;
    let spoilt = registry::reference(SPOILT);
    let locked = registry::reference(&images::reference("busybox"));
    cluster.kubectl.apply(&pods(&[
        ("client", &images::reference("busybox"), false),
        ("spoilt", &spoilt, true),
        ("locked", &locked, false),
        ("silent", &format!("{SILENT}/silent:v1"), false),
        ("docker", DOCKER, false),
        ("oci", OCI, false),
    ]))?;

    cluster.rolled_out("statefulset/postgres")?;
    cluster.rolled_out("deployment/notes")?;
    cluster.rolled_out("deployment/web")?;
    let ready = ["pod/client", "pod/docker", "pod/oci"];
    cluster.kubectl.run(&[&["wait", "--for=condition=Ready", "--timeout=60s"], &ready[..]].concat())?;
    for name in ["docker", "oci"] {
        assert_eq!(cluster.sh(name, "cat /from; id -u")?, format!("{name}\n65534"));
    }
    let add = |text: &str| {
        let post = format!("timeout 5 wget -q -O - --post-data '{text}' http://web/notes");
        cluster.eventually(20, || cluster.sh("client", &post))
    };
    let all = || cluster.sh("client", "timeout 5 wget -q -O - http://web/notes");
    add("buy milk")?;
    add("water plants")?;
    assert_eq!(all()?, "buy milk\nwater plants");
    users_are_their_own(&cluster)?;

    // What the database keeps outlives its pod.
    cluster.kubectl.run(&["delete", "pod", "postgres-0", "--timeout=60s"])?;
    cluster.rolled_out("statefulset/postgres")?;
    let kept = cluster.eventually(30, all)?;
    assert_eq!(kept, "buy milk\nwater plants");

    // By now each of the others knows why it waits.
    refused(&cluster, "spoilt", "digest of a layer: expected sha256:")?;
    refused(&cluster, "locked", "Not authorized")?;
    refused(&cluster, "silent", "timed out")?;
    let node = cluster.node(1)?;
    let index = fs::read_to_string(node.dir.join("var/lib/keelson/images/index.json"))?;
    ensure!(index.contains("/postgres") && !index.contains("spoilt"), "{index}");
    cluster.down()
}

fn fill_registry() -> Result<()> {
    let names = ["busybox", "nginx", "notes", "postgres"];
    for name in names {
        registry::fill([(images::reference(name).as_str(), images::ensure(name)?.as_path())])?;
    }
    let work = tempfile::tempdir_in(paths::cache())?;
    let (files, archive) = (work.path().join("files"), work.path().join("spoilt.tar"));
    fs::create_dir_all(&files)?;
    fs::write(files.join("spoilt"), "by a registry")?;
    ImageBuilder::new(SPOILT, json!({"Cmd": ["/spoilt"]}))
        .layer_from_dir(&files, Compression::Zstd)?
        .write(&archive)?;
    registry::fill([(SPOILT, archive.as_path())])?;
    registry::spoil(SPOILT)
}

/// Has the agent import an archive of each form, as a person on the node does.
fn import(cluster: &TestCluster) -> Result<()> {
    let node = cluster.node(1)?;
    let work = tempfile::tempdir_in(paths::cache())?;
    let base = work.path().join("base");
    fs::create_dir_all(&base)?;
    images::unpack::unpack(&images::ensure("busybox")?, &base)?;
    for (reference, name) in [(DOCKER, "docker"), (OCI, "oci")] {
        let from = work.path().join(name);
        fs::create_dir_all(&from)?;
        fs::write(from.join("from"), format!("{name}\n"))?;
        let image =
            ImageBuilder::new(reference, json!({"Cmd": ["sh"], "User": "65534", "Env": ["PATH=/bin"]}))
                .layer_from_dir(&base, Compression::Gzip)?
                .layer_from_dir(&from, Compression::Zstd)?
                .seal()?;
        let archive = node.dir.join("root").join(format!("{name}.tar"));
        if name == "docker" { image.write_docker(&archive)? } else { image.write(&archive)? }
    }
    let agent = paths::bin("keelson-agent");
    let mut command = node.command("client", &agent.to_string_lossy());
    let said = cmd::text(command.args(["image", "import", "/root/docker.tar", "/root/oci.tar"]))?;
    ensure!(said.contains(&format!("imported {DOCKER} (")) && said.contains(OCI), "{said}");
    Ok(())
}

fn busybox() -> Result<std::path::PathBuf> {
    let path = cmd::text(std::process::Command::new("which").arg("busybox"))?;
    Ok(path.trim().into())
}

/// Pods that sleep: name, image, and whether they have the registry's password.
fn pods(pods: &[(&str, &str, bool)]) -> String {
    let pods = pods.iter().map(|(name, image, secret)| {
        let secrets = if *secret { json!([{"name": "registry"}]) } else { json!([]) };
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "imagePullSecrets": secrets,
            "containers": [{"name": "c", "image": image, "command": ["sleep", "3600"],
                "imagePullPolicy": if image.starts_with("keelson.test/") { "Never" } else { "Always" }}]}})
    });
    json!({"apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>()}).to_string()
}

/// The pod waits for its image, and says why, while it backs off too.
fn refused(cluster: &TestCluster, pod: &str, why: &str) -> Result<()> {
    cluster.eventually(30, || {
        let status = cluster.kubectl.json(&["get", "pod", pod])?;
        let waiting = &status["status"]["containerStatuses"][0]["state"]["waiting"];
        let (reason, message) = (waiting["reason"].as_str(), waiting["message"].as_str().unwrap_or_default());
        ensure!(matches!(reason, Some("ErrImagePull" | "ImagePullBackOff")), "{pod}: {waiting}");
        ensure!(message.contains(why), "{pod}: {waiting}");
        Ok(())
    })
}

/// Each runs as the user that its image names.
fn users_are_their_own(cluster: &TestCluster) -> Result<()> {
    let node = cluster.node(1)?;
    for (program, user) in [("nginx", "33"), ("gunicorn", "1000"), ("postgres", "999")] {
        let script = format!(
            "for p in /proc/[0-9]*; do grep -qx {program} $p/comm 2>/dev/null && grep ^Uid: $p/status; done; true"
        );
        let users = cmd::text(node.command("client", "sh").args(["-c", &script]))?;
        ensure!(!users.is_empty(), "{program} runs");
        assert!(users.lines().all(|line| line.split_whitespace().nth(1) == Some(user)), "{program}: {users}");
    }
    Ok(())
}
