//! `cdp pki`.

use cdp_core::error::Result;
use cdp_replica::pki::{self, Rights};
use serde::Serialize;

use super::Context;
use crate::cli::PkiCommand;
use crate::report;

#[derive(Serialize)]
struct Made {
    dir: String,
}

/// Makes an authority, or what a site needs.
pub fn run(context: &Context, command: PkiCommand) -> Result<u8> {
    let (dir, text) = match &command {
        PkiCommand::Init { dir, name } => {
            pki::make_authority(dir, name)?;
            let text = format!(
                "made the authority {}; keep ca.key to yourself: who has it can make sites",
                dir.display()
            );
            (dir, text)
        }
        PkiCommand::Issue { authority, site, to, primary_only, replica_only, witness } => {
            let rights = Rights {
                primary: !replica_only && !witness,
                replica: !primary_only && !witness,
                witness: *witness,
            };
            pki::issue(authority, site, rights, to)?;
            let what = match (rights.primary, rights.replica) {
                (true, true) => "send and receive",
                (true, false) => "send",
                _ => "receive",
            };
            if *witness {
                let text = format!(
                    "made {} for the witness {site}, which may vote and nothing else; `cdp witness --pki` takes it",
                    to.display()
                );
                let made = serde_json::to_value(Made { dir: to.display().to_string() }).unwrap_or_default();
                context.show(&made, || text);
                return Ok(report::DONE);
            }
            let text = format!(
                "made {} for the site {site}, which may {what}; bring it there as STORE/pki",
                to.display()
            );
            (to, text)
        }
    };
    let made = serde_json::to_value(Made { dir: dir.display().to_string() }).unwrap_or_default();
    context.show(&made, || text);
    Ok(report::DONE)
}
