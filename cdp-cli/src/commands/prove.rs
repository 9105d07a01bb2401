//! `cdp prove`.

use cdp_core::error::{Error, Kind, Result};

use super::{Context, attach, point};
use crate::bisect::probe::{Form, Prober};
use crate::bisect::search::Verdict;
use crate::cli;
use crate::door::unexpected;
use crate::reach::Reach;
use crate::report;
use crate::work::{KeepProof, Request, Response};

/// Runs the program, and keeps what it says.
pub fn run(context: &Context, arguments: &cli::Prove) -> Result<u8> {
    let mut reach = Reach::open_for_others(&context.config)?;
    let done = prove(context, arguments, &mut reach);
    let closed = reach.close();
    let code = done?;
    closed.map(|()| code)
}

fn prove(context: &Context, arguments: &cli::Prove, reach: &mut Reach) -> Result<u8> {
    let point = reach.point(&arguments.target)?;
    point::tell([&point]);
    let prober = Prober {
        volume: point.volume.clone(),
        endpoints: reach.endpoints().clone(),
        store: context.config.store.clone(),
        form: Form::of(arguments.mount, arguments.device),
        partition: arguments.partition,
        program: arguments.program.clone(),
        state_dir: attach::state_dir(context),
        keeper: attach::keeper()?,
        stop: Default::default(),
        mounted: Default::default(),
    };
    let good = match prober.probe(point.lsn)? {
        Verdict::Good => true,
        Verdict::Bad => false,
        Verdict::Skip => {
            let context = "the program says that this state cannot be judged; nothing is kept";
            return Err(Error::new(Kind::Closed, context));
        }
    };
    let program = arguments.program.join(" ");
    let keep = KeepProof { volume: point.volume.clone(), lsn: point.lsn, good, program };
    let answer = reach.ask(Request::KeepProof(keep), &mut |_| Ok(()))?;
    let Response::Proof(proof) = &answer else { return Err(unexpected()) };
    context.show(&serde_json::json!({ "point": point, "proof": proof }), || {
        let word = if good { "good" } else { "NOT good" };
        format!("{}: {word}, says {}", point.export_by_lsn(), proof.program)
    });
    Ok(if good { report::DONE } else { report::ACT })
}
