//! The `cdp` command.

use cdp_cli::host::relay::{self, RelayOptions};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == relay::SUBCOMMAND)
        && let Err(error) = RelayOptions::parse(arguments).and_then(|options| relay::run(&options))
    {
        eprintln!("cdp: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
