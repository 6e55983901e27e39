//! Commands that a person on the node gives, to the agent that runs there.

use std::path::{Path, PathBuf};

/// `keelson-agent image import`: every file that can be, and then an error if one could not.
pub fn import(run_dir: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let socket = keelson_images::local::socket(run_dir);
    let mut failed = 0;
    for file in files {
        match keelson_images::local::import(&socket, file) {
            Ok(images) => {
                for image in images {
                    println!("imported {} ({})", image.repo_tags.join(" "), image.id);
                }
            }
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                failed += 1;
            }
        }
    }
    anyhow::ensure!(failed == 0, "{failed} of {} archives not imported", files.len());
    Ok(())
}
