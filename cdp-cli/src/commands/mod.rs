//! One command each: from what was typed to a request, and from the answer to what is printed.

pub mod attach;
pub mod bisect;
pub mod clone;
pub mod close;
pub mod compare;
pub mod create;
pub mod delete;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod failover;
pub mod files;
pub mod follow;
pub mod group;
pub mod history;
pub mod import;
pub mod list;
pub mod log;
pub mod mark;
pub mod mount;
pub mod pki;
pub mod point;
pub mod progress;
pub mod prove;
pub mod repair;
pub mod replica;
pub mod restore;
pub mod retention;
pub mod rewind;
pub mod serve;
pub mod set;
pub mod status;
pub mod verify;
pub mod witness;

use cdp_core::error::{Error, Kind, Result};

use crate::cli::{Cli, Command, Global};
use crate::config::{Config, Overrides};
use crate::report;

/// What every command needs.
pub struct Context {
    /// The settings that hold.
    pub config: Config,
    /// Results as JSON.
    pub json: bool,
}

impl Context {
    fn new(global: &Global) -> Result<Context> {
        let overrides = Overrides {
            store: global.store.clone(),
            config: global.config.clone(),
            no_io_uring: global.no_io_uring,
        };
        Ok(Context { config: Config::load(&overrides)?, json: global.json })
    }

    /// Prints the answer's JSON if that is wanted; else `text` makes the lines for people.
    pub fn show(&self, json: &serde_json::Value, text: impl FnOnce() -> String) {
        if self.json {
            report::print_json(json);
        } else {
            report::print(text().trim_end());
        }
    }
}

/// Runs a command; gives its exit code.
pub fn run(cli: Cli) -> u8 {
    let json = cli.global.json;
    let outcome = Context::new(&cli.global).and_then(|context| dispatch(&context, cli.command));
    outcome.unwrap_or_else(|error| report::print_error(&error, json))
}

fn dispatch(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Serve(arguments) => serve::run(context, &arguments),
        Command::Create(arguments) => create::run(context, &arguments),
        Command::Set(arguments) => set::run(context, &arguments),
        Command::Retention { command } => retention::run(context, command),
        Command::Replica { command } => replica::run(context, command),
        Command::Pki { command } => pki::run(context, command),
        Command::Witness(arguments) => witness::run(context, &arguments),
        Command::Unmark { target, name } => retention::unmark(context, target, name),
        Command::Import(arguments) => import::run(context, &arguments),
        Command::List => list::run(context),
        Command::Status { target } => status::run(context, target),
        Command::Group { command } => group::run(context, command),
        Command::Mark(arguments) => mark::run(context, &arguments),
        Command::Delete(arguments) => delete::run(context, &arguments),
        Command::Undelete { volume } => delete::undelete(context, volume),
        Command::Log(arguments) => log::run(context, &arguments),
        Command::Close { target, force } => close::run(context, target, force),
        Command::Diff(arguments) => diff::run(context, &arguments),
        Command::Attach(arguments) => attach::run(context, &arguments),
        Command::Detach(arguments) => attach::detach(context, &arguments),
        Command::Mount(arguments) => mount::run(context, &arguments),
        Command::Umount(arguments) => mount::umount(context, &arguments),
        Command::Ls(arguments) => files::ls(context, &arguments),
        Command::Cat(arguments) => files::cat(context, &arguments),
        Command::History(arguments) => history::run(context, &arguments),
        Command::Cp(arguments) => files::cp(context, &arguments),
        Command::Restore(arguments) => restore::run(context, &arguments),
        Command::Bisect(arguments) => bisect::run(context, &arguments),
        Command::Prove(arguments) => prove::run(context, &arguments),
        Command::Clone(arguments) => clone::run(context, &arguments),
        Command::Hydrate { volume } => clone::hydrate(context, volume),
        Command::Rollback(arguments) => rewind::rollback(context, &arguments),
        Command::Undo(arguments) => rewind::undo(context, &arguments),
        Command::Failover(arguments) => failover::failover(context, &arguments),
        Command::Demote(arguments) => failover::demote(context, &arguments),
        Command::Resync(arguments) => failover::resync(context, &arguments),
        Command::Resume { target } => rewind::resume(context, target),
        Command::Grow(arguments) => rewind::grow(context, &arguments),
        Command::Verify { target } => verify::run(context, target),
        Command::Repair(arguments) => repair::run(context, &arguments),
        Command::Demo => demo::run(context),
        Command::Doctor => doctor::run(context),
    }
}

/// Tells what is wrong with a command line, as JSON where that is wanted: help and versions are no errors.
pub fn misspelt(error: &clap::Error, words: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let mut options = words.skip(1).take_while(|word| word != "--");
    if !error.use_stderr() || !options.any(|word| word == "--json") {
        let _ = error.print();
        return if error.use_stderr() { report::USAGE } else { report::DONE };
    }
    let text = error.to_string();
    let (message, hint) = text.split_once("\n\n").unwrap_or((&text, ""));
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    report::print_error(&Error::new(Kind::Invalid, one_line(message)).hint(one_line(hint)), true)
}
