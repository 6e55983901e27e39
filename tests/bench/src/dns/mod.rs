//! Load on a server of cluster DNS, whichever one has the address, and the times of its answers. Services and
//! EndpointSlices behind it are the [`cast`], so that what is right is known beforehand: an answer that is not fails the run.

mod cast;
mod load;
mod message;
mod store;
mod tcp;
mod udp;
mod upstream;

use anyhow::Result;

/// What to do.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make the Services and EndpointSlices.
    Store(store::Args),
    /// Be the name server that names outside of the cluster are asked of.
    Upstream(upstream::Args),
    /// Wait until a server knows the last of the Services.
    Ready(load::ReadyArgs),
    /// Ask a server, and time its answers.
    Load(load::Args),
}

/// Does it.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Store(args) => crate::block_on(store::run(args)),
        What::Upstream(args) => upstream::run(args),
        What::Ready(args) => load::ready(args),
        What::Load(args) => load::run(args),
    }
}
