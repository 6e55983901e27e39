//! The plugin binary: CNI_* variables and stdin in, a document on stdout and an exit status out.

use std::io::{Read, Write};
use std::process::ExitCode;

use keelson_cni::plugin::{self, DEFAULT_DEADLINE};
use keelson_cni::types::config::MAX_CONFIG_BYTES;
use keelson_cni::types::report::ErrorReport;
use keelson_cni::types::version::Version;

fn main() -> ExitCode {
    let get = |name: &str| std::env::var(name).ok();
    if get("CNI_COMMAND").is_none() {
        // As upstream's plugins: someone has called it by hand.
        eprintln!("keelson-cni is a CNI plugin, to be run by a container runtime: CNI_COMMAND is not set");
        eprintln!("CNI protocol versions supported: {}", Version::ALL.map(Version::as_str).join(", "));
        return ExitCode::FAILURE;
    }
    let outcome = match read_stdin() {
        Ok(stdin) => plugin::run(get, &stdin, DEFAULT_DEADLINE),
        Err(error) => Err(ErrorReport::new(&error, Version::V1_1_0)),
    };
    let (document, status) = match outcome {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(report) => (serde_json::to_value(report).ok(), ExitCode::FAILURE),
    };
    if let Some(document) = document
        && let Err(error) = writeln!(std::io::stdout(), "{document:#}")
    {
        eprintln!("cannot write the result: {error}");
        return ExitCode::FAILURE;
    }
    status
}

fn read_stdin() -> keelson_cni::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte over the limit, so that the parser sees that it was passed.
    std::io::stdin()
        .take(MAX_CONFIG_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| keelson_cni::Error::io("read configuration from stdin", e))?;
    Ok(bytes)
}
