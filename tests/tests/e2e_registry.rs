//! A node pulls from a registry: the one that serves the suite's images.

use anyhow::{Result, ensure};
use keelson_tests::images::suite::{NoPrograms, assemble};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::registry;

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";

#[test]
fn a_pod_runs_an_image_from_the_registry() -> Result<()> {
    let made = assemble(&[BUSYBOX.to_owned()], &NoPrograms)?;
    ensure!(made.not_made.is_empty(), "{:?}", made.not_made);
    registry::fill(made.made.iter().map(|image| (image.name.as_str(), image.archive.as_path())))?;
    let cluster = TestCluster::up_with("e2e-registry", 1, &[], &[&registry::agent_arg()])?;
    registry::start(&cluster)?;
    let image = registry::reference(BUSYBOX);
    let run = |name: &str, image: &str| {
        let script = "wget -T 2 -q -O - http://10.89.0.2:5000/v2/; id";
        let args = ["--restart=Never", "--image-pull-policy=Always", "--", "sh", "-c", script];
        cluster.kubectl.run(&[&["run", name, "--image", image], &args[..]].concat())
    };
    run("there", &image)?;
    run("absent", &format!("{image}-absent"))?;
    let done = "--for=jsonpath={.status.phase}=Succeeded";
    cluster.kubectl.run(&["wait", done, "pod/there", "--timeout=60s"])?;
    let said = cluster.kubectl.run(&["logs", "there"])?;
    ensure!(said.starts_with("{}uid=0(root) gid=0(root)"), "{said}");
    cluster.eventually(20, || {
        let pod = cluster.kubectl.json(&["get", "pod", "absent"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ensure!(waiting == "ErrImagePull" || waiting == "ImagePullBackOff", "{pod}");
        Ok(())
    })?;
    cluster.down()
}
