//! `up`, `down`, `kubectl` and `host`: a cluster on this machine.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::testbed::sample;

use crate::build;

/// Name of the cluster that the command line works on.
const NAME: &str = "dev";

/// Arguments of `up`.
#[derive(Args)]
pub struct UpArgs {
    /// Number of nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: u16,
    /// Return as soon as the daemons are started, without the sample application.
    #[arg(long)]
    detach: bool,
    /// Name of the cluster, where several are wanted side by side.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Arguments for each agent, after `--`.
    #[arg(last = true)]
    agent_args: Vec<String>,
}

/// Arguments of `down`.
#[derive(Args)]
pub struct DownArgs {
    /// Name of the cluster.
    #[arg(long, default_value = NAME)]
    name: String,
}

/// Arguments of `kubectl`.
#[derive(Args)]
pub struct KubectlArgs {
    /// Name of the cluster.
    #[arg(long, default_value = NAME)]
    name: String,
    /// kubectl's own arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Arguments of `host`.
#[derive(Args)]
pub struct HostArgs {
    /// The host: master, node-1, …
    host: String,
    /// Name of the cluster.
    #[arg(long, default_value = NAME)]
    name: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// `cargo xtask up`.
pub fn up(args: &UpArgs) -> Result<()> {
    let mut steps = Steps::new();
    steps.step("tools", build::tools)?;
    steps.step("build programs", build::programs)?;
    steps.step("assemble the sample's image", || keelson_tests::images::ensure("testapp-v1"))?;
    let start = Instant::now();
    let options =
        Options { nodes: usize::from(args.nodes), agent_args: args.agent_args.clone(), ..Options::default() };
    let mut cluster = steps.step("make test hosts", || Cluster::create(&args.name, &options))?;
    let result = fill(&mut cluster, args, &mut steps);
    if result.is_err() {
        eprintln!("the cluster is left as it is for a look; logs are under {}", cluster.dir().display());
    }
    result?;
    println!("\ncluster ready {:.2} s after everything was built", start.elapsed().as_secs_f64());
    println!("kubeconfig: {}", cluster.kubeconfig().display());
    println!("try:        cargo xtask kubectl -- get pods -A -o wide");
    println!("end it:     cargo xtask down");
    Ok(())
}

fn fill(cluster: &mut Cluster, args: &UpArgs, steps: &mut Steps) -> Result<()> {
    steps.step("preload images", || cluster.preload_images(&["testapp-v1"]))?;
    steps.step("start the master", || cluster.start_master())?;
    steps.step("start the agents", || (1..=cluster.nodes()).try_for_each(|n| cluster.start_agent(n)))?;
    if args.detach {
        return Ok(());
    }
    steps.step("nodes Ready", || cluster.wait_nodes_ready(Duration::from_secs(60)))?;
    steps.step("apply the sample", || cluster.kubectl()?.apply(sample::MANIFEST))?;
    steps.step("sample rolled out", || sample::wait_available(cluster, Duration::from_secs(60)))?;
    let (by_ip, by_name) = steps.step("first answers", || sample::ask(cluster, Duration::from_secs(20)))?;
    println!("\nthrough the ClusterIP: {by_ip}\nthrough the DNS name:  {by_name}");
    Ok(())
}

/// `cargo xtask down`.
pub fn down(args: &DownArgs) -> Result<()> {
    match Cluster::find(&args.name)? {
        Some(cluster) => Steps::new().step("end the cluster", || cluster.destroy()),
        None => {
            println!("no cluster {} is up", args.name);
            Ok(())
        }
    }
}

fn existing(name: &str) -> Result<Cluster> {
    Cluster::find(name)?.with_context(|| format!("no cluster {name} is up: make one with 'cargo xtask up'"))
}

fn replace(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    bail!("start {:?}: {error}", command.get_program());
}

/// `cargo xtask kubectl -- ARGS`.
pub fn kubectl(args: &KubectlArgs) -> Result<()> {
    let cluster = existing(&args.name)?;
    let words: Vec<&str> = args.args.iter().map(String::as_str).collect();
    replace(&mut cluster.kubectl()?.command(&words))
}

/// `cargo xtask host NAME -- COMMAND`.
pub fn host(args: &HostArgs) -> Result<()> {
    let cluster = existing(&args.name)?;
    let (program, rest) = args.words.split_first().context("no command was given")?;
    replace(cluster.host(&args.host)?.command("client", program).args(rest))
}
