//! Plugins that mean harm or are broken beyond reason: none holds up other pods, fills the memory, or stays. Needs no root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod programs;

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_cni::{Attachment, DriverError};
use programs::{RESULT, Setup, attachment};

/// Most that this process has ever held, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Command lines of processes that belong to this folder, once those that were killed have had time to die.
async fn processes_of(dir: &Path) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    let dir = dir.display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&dir)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_holds_up_its_own_pod_only() {
    let setup = Setup::new(r#"{"type":"one"}"#);
    let dir = setup.dir.path().display();
    // It is deaf to signals, and so is what it has started.
    let hang = format!("trap '' TERM INT HUP; sh -c 'trap \"\" TERM; sleep 600; : {dir}' & sleep 600");
    setup.plugin("one", &format!("case $CNI_ARGS in *=stuck*) {hang};; esac\n{RESULT}"));
    let pod = |name: &str| Attachment {
        container_id: name.into(),
        ..Attachment::for_pod(name, Some("/none".into()), "default", name, "uid")
    };
    let start = Instant::now();
    let (stuck, other) = (pod("stuck"), pod("other"));
    let hanging = setup.driver.add(&stuck);
    let others = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        setup.driver.add(&other).await.unwrap();
        setup.driver.check(&other).await.unwrap();
        setup.driver.del(&other).await.unwrap();
        start.elapsed()
    };
    let (failed, took) = tokio::join!(hanging, others);
    assert!(took < Duration::from_millis(1500), "{took:?}");
    let error = failed.unwrap_err();
    assert!(matches!(error, DriverError::TimedOut { command: "ADD", .. }), "{error:?}");
    assert_eq!(error.to_string(), r#"plugin type="one" (ADD) was killed after 2s"#);
    // Its DEL hangs as well, again and again, until the plugin is mended; then nothing is left.
    let error = setup.driver.del(&stuck).await.unwrap_err();
    assert!(matches!(error, DriverError::TimedOut { command: "DEL", .. }), "{error:?}");
    assert_eq!(processes_of(setup.dir.path()).await, Vec::<String>::new());
    setup.plugin("one", RESULT);
    setup.driver.del(&stuck).await.unwrap();
    assert!(setup.driver.attachments().unwrap().is_empty());
}

#[tokio::test]
async fn what_del_could_not_do_is_done_by_the_next_one() {
    let setup = Setup::new(r#"{"type":"one"},{"type":"two"}"#);
    setup.plugin("one", RESULT);
    setup.plugin("two", RESULT);
    let pod = attachment(setup.dir.path());
    setup.driver.add(&pod).await.unwrap();
    setup.plugin("one", r#"[ $CNI_COMMAND = DEL ] && echo '{"code":11,"msg":"busy"}' && exit 1; exit 0"#);
    for _ in 0..2 {
        let error = setup.driver.del(&pod).await.unwrap_err();
        assert!(matches!(&error, DriverError::Plugin { report, .. } if report.code == 11), "{error:?}");
        assert_eq!(setup.driver.attachments().unwrap().len(), 1, "what is not undone is still known");
    }
    setup.plugin("one", RESULT);
    setup.driver.del(&pod).await.unwrap();
    assert!(setup.driver.attachments().unwrap().is_empty());
    let last = setup.log().pop().unwrap();
    assert!(last.starts_with("one DEL") && last.contains("prevResult"), "{last}");
}

#[tokio::test]
async fn a_gigabyte_is_not_held() {
    const FLOOD: &str = "head -c 1073741824 /dev/zero";
    let before = peak();
    let setup = Setup::new(r#"{"type":"one"}"#);
    let pod = attachment(setup.dir.path());
    setup.plugin("one", &format!("{FLOOD}; exit 0"));
    let error = setup.driver.add(&pod).await.unwrap_err();
    assert!(error.to_string().contains("output is longer than 1048576 bytes"), "{error}");
    // stderr is only for people: any amount of it, and the result counts.
    setup.plugin("one", &format!("{FLOOD} >&2\n{RESULT}"));
    setup.driver.add(&pod).await.unwrap();
    setup.driver.del(&pod).await.unwrap();
    // Endless, it is a plugin that does not end.
    setup.plugin("one", "cat /dev/zero >&2");
    let error = setup.driver.add(&pod).await.unwrap_err();
    assert!(matches!(error, DriverError::TimedOut { .. }), "{error:?}");
    let grown = peak() - before;
    // What the tests beside this one hold is in it.
    assert!(grown < 100, "{grown} MiB were held");
}

#[tokio::test]
async fn messages_stay_short() {
    let setup = Setup::new(r#"{"type":"one"}"#);
    let pod = attachment(setup.dir.path());
    let long = "head -c 400000 /dev/zero | tr '\\0' x";
    setup.plugin(
        "one",
        &format!(r#"echo "{{\"code\":100,\"msg\":\"$({long})\",\"details\":\"$({long})\"}}"; exit 1"#),
    );
    let error = setup.driver.add(&pod).await.unwrap_err();
    assert!(matches!(&error, DriverError::Plugin { report, .. } if report.code == 100), "{error:?}");
    assert!(error.to_string().len() < 2000);
    setup.plugin("one", &format!("{long}; {long} >&2; exit 1"));
    let text = setup.driver.add(&pod).await.unwrap_err().to_string();
    assert!(text.len() < 2000 && text.contains("exit status: 1 without an error document"), "{text}");
}

#[tokio::test]
async fn hostile_results_attach_nothing() {
    let many = format!("[{}]", vec![r#"{"address":"10.0.0.5/24"}"#; 20_000].join(","));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let ip = |address: &str| format!(r#"[{{"address":"{address}"}}]"#);
    for (ips, expected) in [
        (ip("10.0.0.5/33"), "invalid IP address syntax"),
        (ip("10.0.0.5/-1"), "invalid IP address syntax"),
        (ip("10.0.0.5"), "invalid IP address syntax"),
        (ip("fd00::5/129"), "invalid IP address syntax"),
        (ip("$(reboot)"), "invalid IP address syntax"),
        (r#"[{"address":"10.0.0.5/24","interface":4294967295}]"#.into(), "an interface that is not listed"),
        (r#"[{"address":"10.0.0.5/24","gateway":"nowhere"}]"#.into(), "invalid IP address syntax"),
        (r#"{"address":"10.0.0.5/24"}"#.into(), "invalid type"),
        ("[]".into(), r#"network "net" gives interface "eth0" no address"#),
        (ip("0.0.0.0/0"), r#"interface "eth0" the address 0.0.0.0, which no pod can have"#),
        (ip("127.0.0.1/8"), "127.0.0.1, which no pod can have"),
        (ip("::1/128"), "::1, which no pod can have"),
        (ip("224.0.0.1/24"), "224.0.0.1, which no pod can have"),
        (ip("255.255.255.255/32"), "255.255.255.255, which no pod can have"),
        (deep, "recursion limit"),
    ] {
        let setup = Setup::new(r#"{"type":"one"}"#);
        let result = setup.dir.path().join("result");
        std::fs::write(&result, format!(r#"{{"cniVersion":"1.1.0","ips":{ips}}}"#)).unwrap();
        setup.plugin("one", &format!("[ $CNI_COMMAND = ADD ] && cat {}; exit 0", result.display()));
        let error = setup.driver.add(&attachment(setup.dir.path())).await.unwrap_err();
        let shown = &ips[..ips.len().min(60)];
        assert!(error.to_string().contains(expected), "{shown}: {error}");
        assert!(setup.log().last().unwrap().starts_with("one DEL"), "{shown}");
        assert!(setup.driver.attachments().unwrap().is_empty(), "{shown}");
    }
    // An address outside of every range that this node knows is the plugin's own affair, and so is their number.
    for (ips, count) in [(ip("203.0.113.7/24"), 1), (many, 20_000)] {
        let setup = Setup::new(r#"{"type":"one"}"#);
        let result = setup.dir.path().join("result");
        std::fs::write(&result, format!(r#"{{"cniVersion":"1.1.0","ips":{ips}}}"#)).unwrap();
        setup.plugin("one", &format!("[ $CNI_COMMAND = ADD ] && cat {}; exit 0", result.display()));
        let pod = attachment(setup.dir.path());
        assert_eq!(setup.driver.add(&pod).await.unwrap().ips.len(), count);
        setup.driver.del(&pod).await.unwrap();
    }
}
