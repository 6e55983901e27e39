//! The worker as a program of its own, for tests, whose `main` is not theirs. The agent uses itself instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    if keelson_dns::worker::requested()
        && let Err(error) = keelson_dns::worker::run()
    {
        eprintln!("keelson-dns-worker: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
