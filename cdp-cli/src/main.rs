//! The `cdp` command.

use std::process::ExitCode;

use cdp_cli::host::relay::{self, RelayOptions};
use cdp_cli::{cli, commands, report};
use clap::Parser;

fn main() -> ExitCode {
    // Not a command for people: attach starts it for itself.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == relay::SUBCOMMAND) {
        return match RelayOptions::parse(words).and_then(|options| relay::run(&options)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(report::print_error(&error, false)),
        };
    }
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "help")
        && let Some(page) = words.next().as_deref().and_then(|topic| cli::help_page(topic.to_str()?))
    {
        report::print(page);
        return ExitCode::from(report::ended(report::DONE));
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(commands::misspelt(&error, std::env::args_os())),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(log_level())
        .with_target(false)
        .with_ansi(false)
        .init();
    ExitCode::from(report::ended(commands::run(cli)))
}

/// CDP_LOG: error, warn, info (also without it), debug, trace.
fn log_level() -> tracing::Level {
    std::env::var("CDP_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::INFO)
}
