//! The driver with programs as plugins: chaining, misbehaviour, time limits. Needs no root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod programs;

use std::time::{Duration, Instant};

use keelson_cni::{DriverError, PortMapping, Protocol};
use programs::{RESULT, Setup, attachment};

#[tokio::test]
async fn chain_runs_forward_and_back() {
    let setup =
        Setup::new(r#"{"type":"one","keep":"me"},{"type":"two","capabilities":{"portMappings":true}}"#);
    setup.plugin("one", RESULT);
    setup.plugin("two", RESULT);
    let mut pod = attachment(setup.dir.path());
    pod.port_mappings =
        vec![PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
    let attached = setup.driver.add(&pod).await.unwrap();
    assert_eq!(attached.ips, ["10.0.0.5".parse::<std::net::IpAddr>().unwrap()]);
    setup.driver.check(&pod).await.unwrap();
    setup.driver.del(&pod).await.unwrap();
    let log = setup.log();
    let order: Vec<String> =
        log.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(order, ["one ADD", "two ADD", "one CHECK", "two CHECK", "two DEL", "one DEL"]);
    assert!(log[0].contains("K8S_POD_NAME=web") && log[0].contains(r#""keep":"me""#));
    assert!(!log[0].contains("prevResult") && !log[0].contains("runtimeConfig"));
    for line in &log[1..] {
        assert!(line.contains("prevResult"), "{line}");
        assert_eq!(line.starts_with("two"), line.contains(r#""hostPort":8080"#), "{line}");
    }
    // A second DEL finds no cached result and is still success.
    setup.driver.del(&pod).await.unwrap();
}

#[tokio::test]
async fn a_failing_plugin_undoes_the_chain() {
    let setup = Setup::new(r#"{"type":"one"},{"type":"two"}"#);
    setup.plugin("one", RESULT);
    setup.plugin(
        "two",
        r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":11,"msg":"busy","details":"wait"}'; exit 1"#,
    );
    let error = setup.driver.add(&attachment(setup.dir.path())).await.unwrap_err();
    assert!(matches!(&error, DriverError::Plugin { report, .. } if report.code == 11), "{error:?}");
    assert!(setup.log().last().unwrap().starts_with("one DEL"));
    assert!(setup.driver.attachments().unwrap().is_empty());
}

#[tokio::test]
async fn misbehaviour_is_an_error() {
    for (script, expected) in [
        ("echo garbage", "unreadable output"),
        ("exit 0", "no result"),
        ("echo oops >&2; exit 3", "oops"),
        ("kill -9 $$", "signal"),
        (r#"echo '{"cniVersion":"0.1.0","ip4":{}}'"#, "incompatible"),
        (r#"head -c 2000000 /dev/zero; exit 0"#, "longer than"),
    ] {
        let setup = Setup::new(r#"{"type":"one"}"#);
        setup.plugin("one", script);
        let error = setup.driver.add(&attachment(setup.dir.path())).await.unwrap_err();
        assert!(matches!(error, DriverError::Protocol { .. }), "{script}: {error:?}");
        assert!(error.to_string().contains(expected), "{script}: {error}");
    }
    let setup = Setup::new(r#"{"type":"missing"}"#);
    let error = setup.driver.add(&attachment(setup.dir.path())).await.unwrap_err();
    assert!(matches!(error, DriverError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children() {
    let setup = Setup::new(r#"{"type":"one"}"#);
    let marker = setup.dir.path().join("alive");
    setup.plugin("one", &format!("(sleep 4; touch {}) & sleep 60", marker.display()));
    let start = Instant::now();
    let error = setup.driver.check(&attachment(setup.dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("no cached result"));
    let error = setup.driver.add(&attachment(setup.dir.path())).await.unwrap_err();
    assert!(matches!(error, DriverError::TimedOut { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!marker.exists(), "a child of the plugin outlived it");
}

#[tokio::test]
async fn capabilities_nobody_has_are_refused() {
    let setup = Setup::new(r#"{"type":"one"}"#);
    setup.plugin("one", RESULT);
    let mut pod = attachment(setup.dir.path());
    pod.bandwidth = Some(keelson_cni::Bandwidth::default());
    let error = setup.driver.add(&pod).await.unwrap_err();
    assert!(matches!(error, DriverError::NoCapability { capability: "bandwidth", .. }), "{error:?}");
    assert!(setup.log().is_empty());
}
