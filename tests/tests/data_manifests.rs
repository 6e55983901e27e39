//! Well-known applications, applied and applied again: what a second `kubectl apply` says of an object shows whether it was
//! stored as it was sent. None of their images is needed for that.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;

/// What is applied, and how many objects are in it.
const SETS: &[(&str, usize)] = &[
    ("guestbook", 6),
    ("guestbook/all-in-one/guestbook-all-in-one.yaml", 6),
    ("guestbook/legacy", 3),
    ("guestbook-go", 6),
    ("online-boutique.yaml", 35),
];

#[test]
fn applied_twice_is_unchanged() -> Result<()> {
    let data = std::env::var_os("KEELSON_TESTDATA").context(
        "set KEELSON_TESTDATA to a folder beside one named manifests, which holds guestbook and guestbook-go of \
         kubernetes/examples and online-boutique.yaml of GoogleCloudPlatform/microservices-demo",
    )?;
    let folder = PathBuf::from(data).join("../manifests");
    let cluster = TestCluster::up("data-manifests", 1, &[])?;
    for (n, (set, objects)) in SETS.iter().enumerate() {
        let (namespace, path) = (format!("set-{n}"), folder.join(set).display().to_string());
        cluster.kubectl.run(&["create", "namespace", &namespace])?;
        let apply = || {
            let said = cluster.kubectl.run(&["apply", "-n", &namespace, "-f", &path])?;
            Ok::<_, anyhow::Error>(said.lines().map(str::to_owned).collect::<Vec<_>>())
        };
        let first = apply()?;
        ensure!(first.len() == *objects, "{set}: {objects} objects, not {first:#?}");
        ensure!(first.iter().all(|line| line.ends_with(" created")), "{set}: {first:#?}");
        let again = apply()?;
        ensure!(again.iter().all(|line| line.ends_with(" unchanged")), "{set}: {again:#?}");
        // Nor is anything left to do by the server's own reckoning.
        let diff = cluster.kubectl.command(&["diff", "-n", &namespace, "-f", &path]).output()?;
        ensure!(diff.status.success(), "{set}: {}", String::from_utf8_lossy(&diff.stdout));
        cluster.kubectl.run(&["delete", "namespace", &namespace, "--wait=false"])?;
    }
    cluster.down()
}
