//! `cargo xtask chaos`: a cluster broken at random under load, and what must be true after that.

use anyhow::Result;
use clap::Args;
use keelson_tests::chaos::{self, Options, load};
use keelson_tests::images;
use keelson_tests::progress::Steps;

use crate::build;

/// Arguments of `chaos`.
#[derive(Args)]
pub struct ChaosArgs {
    /// What the faults are chosen by; the same seed gives the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long things are broken.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Nodes of the cluster; of three and more one is lost for good.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    nodes: u16,
    /// Writes of ConfigMaps a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Name of the cluster.
    #[arg(long, default_value = "chaos")]
    name: String,
}

/// Builds what is needed, and runs it.
pub fn run(args: &ChaosArgs) -> Result<()> {
    let mut steps = Steps::new();
    steps.step("tools", build::tools)?;
    steps.step("build programs", build::programs)?;
    steps.step("assemble the images", || {
        load::IMAGES.iter().try_for_each(|image| images::ensure(image).map(drop))
    })?;
    let options = Options {
        name: args.name.clone(),
        seed: args.seed,
        seconds: args.minutes * 60,
        nodes: usize::from(args.nodes),
        rate: args.rate,
    };
    chaos::run(&options).map(drop)
}
