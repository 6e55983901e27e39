//! What was measured or tested: the checkout's commit.

use std::process::Command;

use anyhow::Result;

use crate::{cmd, paths};

/// The commit, and whether files that it has were changed since.
pub fn commit() -> Result<(String, bool)> {
    let git = |args: &[&str]| cmd::text(Command::new("git").args(args).current_dir(paths::root()));
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty();
    Ok((git(&["rev-parse", "HEAD"])?.trim().to_owned(), changed))
}
