//! Commands that write records are answered only under the lease, where the sites vote on which of them answers.
//!
//! Whoever is told that a marker was set, or that a volume went back, believes that it is in the history that everybody goes
//! on with. At a site that lost the lease it would be in a tail that is set aside. So it is with a command as with a
//! write (`serve/gate.rs`): begun only under the lease, and answered only under the lease of the same epoch.

use std::sync::Arc;
use std::time::Duration;

use cdp_core::error::{Error, Result};
use cdp_core::history::point::split_export;
use cdp_replica::vote::lease::{Held, Lease};

use super::{Request, Site};
use crate::serve::gate::{DOOR_PATIENCE, refusal};

/// A command that has done its work waits so long at most until it may be answered: as a client's request does.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// The leases under which a command was begun, each once.
pub struct Leased(Vec<(String, Arc<Lease>, Held)>);

impl Leased {
    /// Waits a moment for the lease of every volume that the request writes records to, if they are answered under one. What is not a
    /// primary here, or not here, says so itself.
    ///
    /// # Errors
    /// [`cdp_core::error::Kind::Closed`]: nothing was done.
    pub fn begin(site: &Site, request: &Request) -> Result<Leased> {
        let members = target(request).map(|target| site.store.members(target));
        let Some(Ok(members)) = members else { return Ok(Leased(Vec::new())) };
        let mut leased: Vec<(String, Arc<Lease>, Held)> = Vec::new();
        for volume in members.iter().filter(|volume| volume.is_primary()) {
            let Some(lease) = site.votes.lease_of(&site.store, volume) else { continue };
            if leased.iter().any(|(_, known, _)| Arc::ptr_eq(known, &lease)) {
                continue;
            }
            let name = volume.name().to_owned();
            match lease.enter(DOOR_PATIENCE) {
                Some(held) => leased.push((name, lease, held)),
                None => return Err(refusal(&name, &lease)),
            }
        }
        Ok(Leased(leased))
    }

    /// The work is done: whether it may be said.
    ///
    /// # Errors
    /// Likewise; what was done is in the history here, and may be in that of nobody else.
    pub fn end(self) -> Result<()> {
        for (name, lease, held) in self.0 {
            if !lease.leave(held, ANSWER_PATIENCE) {
                let context = format!("{}; what was to be done may be done here", refusal(&name, &lease));
                return Err(Error::new(cdp_core::error::Kind::Closed, context)
                    .hint("look at `cdp log` where the volume is answered: it is there, or it has to be done again there"));
            }
        }
        Ok(())
    }
}

/// What a request writes records to; nothing for those that look, and for those that change what is kept of it here.
fn target(request: &Request) -> Option<&str> {
    match request {
        Request::Mark(mark) => Some(&mark.target),
        Request::Rollback(rollback) => Some(split_export(&rollback.target).0),
        Request::Undo(undo) => Some(&undo.target),
        Request::Grow { volume, .. } => Some(volume),
        Request::Import(import) => Some(&import.volume),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::error::Kind;
    use cdp_core::io::sim::SimClock;
    use cdp_core::io::{Clock, native};
    use cdp_core::store::{CreateOptions, Store};

    use super::super::{Mark, Response, Undo, run};
    use super::*;
    use crate::serve::votes::{Automatic, Votes};

    struct Rig {
        clock: SimClock,
        lease: Arc<Lease>,
        site: Site,
        _home: tempfile::TempDir,
    }

    /// A site with a volume that is answered under a lease, one of a group, and one that is not.
    fn rig() -> Rig {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("store");
        let (files, clock) = (native(false), SimClock::new(1));
        let time: Arc<dyn Clock> = Arc::new(clock.clone());
        Store::create(&*files, &*time, &dir).unwrap();
        let store = Store::open(files, time.clone(), &dir, "a test").unwrap();
        for name in ["data", "logs", "free"] {
            store.create_volume(name, &CreateOptions::new(1 << 20), None).unwrap();
        }
        store.add_to_group("shop", &["data".to_owned(), "logs".to_owned()], true).unwrap();
        let plan = Automatic {
            target: "shop".to_owned(),
            peer: "peer:1".to_owned(),
            witness: "witness:1".to_owned(),
            loss_max_ns: 0,
        };
        let lease = Arc::new(Lease::new(time));
        let votes = Arc::new(Votes::under(&plan, lease.clone()));
        Rig { clock, lease, site: Site { store: Arc::new(store), server: None, votes }, _home: home }
    }

    fn mark(target: &str, name: &str) -> Request {
        Request::Mark(Mark {
            target: target.to_owned(),
            name: Some(name.to_owned()),
            note: String::new(),
            tags: Vec::new(),
            application: None,
        })
    }

    fn asked(rig: &Rig, request: &Request) -> Result<Response> {
        run(&rig.site, None, request, &mut |_| Ok(()))
    }

    // Somebody sets a marker before an upgrade, at a site that was cut off: he upgrades, and where the disk went on there is no
    // such marker.
    #[test]
    fn what_writes_records_is_begun_under_the_lease_only() {
        let rig = rig();
        let tips = || ["data", "logs"].map(|name| rig.site.store.volume(name).unwrap().tip_lsn());
        rig.lease.give_up("another site has it");
        let before = tips();
        let requests = [
            mark("shop", "before-upgrade"),
            mark("data", "before-upgrade"),
            Request::Rollback(super::super::Rollback { target: "shop@lsn:0".to_owned(), force: true }),
            Request::Undo(Undo { target: "logs".to_owned(), force: false }),
            Request::Grow { volume: "data".to_owned(), size_bytes: 2 << 20 },
        ];
        for request in &requests {
            let error = asked(&rig, request).unwrap_err();
            assert_eq!(error.kind(), Kind::Closed, "{request:?}: {error}");
            assert!(error.to_string().contains("another site has it"), "{error}");
            assert_eq!(tips(), before, "{request:?} was refused, and left a record");
        }
        // What nobody votes on, and what is about the history that is kept here.
        asked(&rig, &mark("free", "before-upgrade")).unwrap();
        let policy = "every-write 12h".to_owned();
        asked(&rig, &Request::SetRetention { target: "data".to_owned(), policy }).unwrap();
        rig.lease.set(Some((1, u64::MAX)), "");
        asked(&rig, &requests[0]).unwrap();
    }

    // The lease ends while the marker is made durable: the other site may have gone on before it.
    #[test]
    fn what_is_done_is_said_under_the_lease_of_the_same_epoch_only() {
        let rig = rig();
        rig.lease.set(Some((1, rig.clock.elapsed_ns() + 1000)), "");
        let leased = Leased::begin(&rig.site, &mark("shop", "before-upgrade")).unwrap();
        rig.clock.advance(1000);
        rig.lease.give_up("another site has it");
        assert_eq!(leased.end().unwrap_err().kind(), Kind::Closed);
        rig.lease.set(Some((1, u64::MAX)), "");
        let leased = Leased::begin(&rig.site, &mark("shop", "before-upgrade")).unwrap();
        rig.lease.set(Some((3, u64::MAX)), "");
        assert!(leased.end().is_err(), "another epoch lies between");
        let leased = Leased::begin(&rig.site, &mark("shop", "before-upgrade")).unwrap();
        rig.lease.set(Some((3, u64::MAX)), "renewed");
        leased.end().unwrap();
    }
}
