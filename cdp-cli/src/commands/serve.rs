//! `cdp serve`.

use cdp_core::error::Result;

use super::Context;
use crate::cli::Serve;
use crate::config::Config;
use crate::report;
use crate::serve::{self, ServeOptions};

/// Serves until it is told to stop.
pub fn run(context: &Context, arguments: &Serve) -> Result<u8> {
    let config = Config {
        socket: arguments.socket.clone().or_else(|| context.config.socket.clone()),
        listen: arguments.listen.or(context.config.listen),
        insecure_plaintext: arguments.insecure_plaintext || context.config.insecure_plaintext,
        on_alarm: arguments.on_alarm.clone().or_else(|| context.config.on_alarm.clone()),
        on_promote: arguments.on_promote.clone().or_else(|| context.config.on_promote.clone()),
        on_demote: arguments.on_demote.clone().or_else(|| context.config.on_demote.clone()),
        replica_listen: arguments.replica_listen.or(context.config.replica_listen),
        pki: arguments.pki.clone().or_else(|| context.config.pki.clone()),
        ..context.config.clone()
    };
    let options = ServeOptions { stdio: arguments.stdio, json: context.json, quiet: false };
    serve::run(&config, &options)?;
    Ok(report::DONE)
}
