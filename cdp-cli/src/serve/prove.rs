//! Proofs on a schedule: each volume with a plan is looked at by its program when its last verdict has become old.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::Zone;
use cdp_core::ids::Timestamp;

use crate::bisect::probe::{Form, Prober};
use crate::bisect::search::Verdict;
use crate::host::attachment::STATE_DIR;
use crate::host::keeper::Keeper;
use crate::work::{Site, points};

/// Between two looks at the plans.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks whether it is over.
const POLL: Duration = Duration::from_millis(100);
/// A proof that could not be made is tried again after so long a time, or after its interval if that is shorter.
const RETRY_NS: u64 = 600 * 1_000_000_000;

/// What the configuration wants for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvePlan {
    /// Which volume.
    pub volume: String,
    /// So often, in nanoseconds.
    pub every_ns: u64,
    /// Which state.
    pub point: String,
    /// In which form the program gets it.
    pub form: Form,
    /// Which partition is mounted.
    pub partition: Option<u32>,
    /// The program with its arguments.
    pub program: Vec<String>,
}

/// Proves by plan until `stop` is set.
pub fn run(site: &Site, plans: &[ProvePlan], stop: &Arc<AtomicBool>) {
    // When a plan failed, and so has no verdict that tells when it is due.
    let mut failed: Vec<Option<Timestamp>> = vec![None; plans.len()];
    while !stop.load(Ordering::Relaxed) {
        for (plan, failed) in plans.iter().zip(&mut failed) {
            let now = site.store.clock().now();
            let is_due = due(site, plan, now).unwrap_or(true);
            let waits = failed.is_some_and(|at| now.0.saturating_sub(at.0) < plan.every_ns.min(RETRY_NS));
            if !is_due || waits || stop.load(Ordering::Relaxed) {
                continue;
            }
            *failed = match prove(site, plan, stop) {
                Ok(true) => None,
                Ok(false) => {
                    tracing::error!("volume {}: the program says that it is not good", plan.volume);
                    None
                }
                Err(_) if stop.load(Ordering::Relaxed) => return,
                Err(error) => {
                    tracing::error!("volume {}: no proof: {error}", plan.volume);
                    Some(now)
                }
            };
        }
        let begun = Instant::now();
        while begun.elapsed() < LOOK && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(POLL);
        }
    }
}

fn due(site: &Site, plan: &ProvePlan, now: Timestamp) -> Result<bool> {
    let proofs = site.store.volume(&plan.volume)?.proofs()?;
    let newest = proofs.iter().map(|proof| proof.proved).max();
    Ok(newest.is_none_or(|at| now.0.saturating_sub(at.0) >= plan.every_ns))
}

fn prove(site: &Site, plan: &ProvePlan, stop: &Arc<AtomicBool>) -> Result<bool> {
    let volume = site.store.volume(&plan.volume)?;
    let target = points::of_volume(&site.store, volume.clone(), &plan.point, &Zone::system()?)?;
    target.refuse_clone(&plan.point)?;
    let store: PathBuf = site.store.path().to_owned();
    let prober = Prober {
        volume: plan.volume.clone(),
        endpoints: site.server.as_ref().map(|server| server.endpoints.clone()).unwrap_or_default(),
        state_dir: store.join(STATE_DIR),
        store,
        form: plan.form,
        partition: plan.partition,
        program: plan.program.clone(),
        keeper: Keeper::Relay(std::env::current_exe().at(|| "finding this program".to_owned())?),
        stop: stop.clone(),
        mounted: Default::default(),
    };
    let good = match prober.probe(target.resolved.lsn.0)? {
        Verdict::Good => true,
        Verdict::Bad => false,
        Verdict::Skip => return Err(Error::new(Kind::Closed, "the program says that it cannot judge")),
    };
    volume.keep_proof(target.resolved.lsn, good, &plan.program.join(" "))?;
    Ok(good)
}
