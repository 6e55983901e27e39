//! A minute of `cargo xtask chaos`: the master and agents killed, cables out, slow and lossy, disks full, the registry gone,
//! a node lost; and everything that must be true after that.

use anyhow::{Result, ensure};
use keelson_tests::chaos::{Options, run};

#[test]
fn a_cluster_that_was_broken_is_as_if_nothing_had_happened() -> Result<()> {
    let report = run(&Options { name: "e2e-chaos".into(), seed: 1, seconds: 60, nodes: 3, rate: 100 })?;
    let acknowledged: usize = report.acknowledged.values().sum();
    ensure!(acknowledged > 500, "that was no load: {acknowledged} writes");
    ensure!(report.answers.0 > 500, "those were no clients: {:?}", report.answers);
    Ok(())
}
