//! Manual pages and shell completions, from the flags that the daemons themselves parse.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use flate2::{Compression, GzBuilder};

use super::package::File;

/// What the included command lines say to `--version`.
const VERSION: &str = env!("CARGO_PKG_VERSION");

// Included and not depended on: xtask would otherwise be built from the daemons' whole dependency trees.
#[path = "../../../agent/src/flags.rs"]
#[allow(dead_code, reason = "only the command is made of it here")]
mod agent;
#[path = "../../../master-lite/src/flags.rs"]
#[allow(dead_code, reason = "only the command is made of it here")]
mod master;

/// Documents of keelson-agent.
pub fn of_agent() -> Result<Vec<File>> {
    documents(agent::Flags::command())
}

/// Documents of keelson-master.
pub fn of_master() -> Result<Vec<File>> {
    documents(master::Flags::command())
}

fn documents(mut command: clap::Command) -> Result<Vec<File>> {
    let name = command.get_name().to_owned();
    let mut files = Vec::new();
    for (shell, path) in [
        (Shell::Bash, format!("usr/share/bash-completion/completions/{name}")),
        (Shell::Zsh, format!("usr/share/zsh/vendor-completions/_{name}")),
        (Shell::Fish, format!("usr/share/fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut script);
        files.push(File::new(path, 0o644, script));
    }
    pages(&command, &mut files)?;
    Ok(files)
}

/// The page of a command, and those of its subcommands.
fn pages(command: &clap::Command, files: &mut Vec<File>) -> Result<()> {
    // Each page says what the subcommands `help` would.
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        pages(sub, files)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .section("8")
        // None: the same page each time.
        .date("")
        .source(format!("Keelson {VERSION}"))
        .manual("Keelson");
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut text = Vec::new();
    page.render(&mut text)?;
    gzip.write_all(&text)?;
    files.push(File::new(format!("usr/share/man/man8/{name}.8.gz"), 0o644, gzip.finish()?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        let files = of_agent().unwrap();
        let page = |name: &str| {
            let path = format!("usr/share/man/man8/{name}.8.gz");
            let file = files.iter().find(|file| file.path == path).unwrap();
            let mut text = String::new();
            flate2::read::GzDecoder::new(&file.content[..]).read_to_string(&mut text).unwrap();
            text.replace("\\-", "-")
        };
        assert!(page("keelson-agent").contains("--bootstrap-kubeconfig"));
        assert!(page("keelson-agent-reset").contains("--keep-files"));
        assert!(page("keelson-agent-image-import").contains("FILES"));
        assert!(!files.iter().any(|file| file.path.contains("-help")));
        let bash = files.iter().find(|file| file.path.ends_with("completions/keelson-agent")).unwrap();
        assert!(String::from_utf8_lossy(&bash.content).contains("--network-mode"));
        assert!(of_master().unwrap().iter().any(|file| file.path.ends_with("man8/keelson-master.8.gz")));
    }
}
