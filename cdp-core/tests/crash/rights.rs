//! Whose word counts at a replica.

use cdp_core::error::Kind;
use cdp_core::ids::*;
use cdp_core::volume::epoch::Elsewhere;

use crate::clones::fresh;
use crate::coalesced::Outage;

/// A laboratory promoted a copy of a store, and its link reaches the replica. Somebody there asks for a reseed, and takes it back: the
/// one that feeds it must not be refused from then on, without anybody having named another.
#[test]
fn asking_for_a_reseed_does_not_change_whose_records_are_taken() {
    let outage = Outage::new(15, false);
    let (_disk, store) = fresh(91, &[]);
    let volume = store.create_replica("disk", &outage.origin(), None).unwrap();
    volume.set_source("site-a").unwrap();
    outage.append(&volume, outage.from);
    let (_lab_disk, lab_store) = fresh(92, &[]);
    let lab = lab_store.create_replica("disk", &outage.origin(), None).unwrap();
    outage.append(&lab, Lsn(4));
    lab_store.promote("disk", &[(lab.clone(), Lsn(4))], EpochNumber(0), "a laboratory").unwrap();
    assert!(!volume.believes("lab"));
    volume.note_claim(Elsewhere { site: "lab".to_owned(), epochs: lab.epochs(), tip: lab.tip_lsn() });
    let source = || volume.source().map(|source| source.peer);
    let refused = store.plan_reseed("disk", None, None).unwrap_err();
    assert!(
        refused.kind() == Kind::Refused && refused.hint_text().unwrap().contains("--site lab"),
        "{refused}"
    );
    assert_eq!((source().as_deref(), store.seed_plan("disk").unwrap()), (Some("site-a"), None));
    store.plan_reseed("disk", None, Some("site-a")).unwrap();
    assert_eq!(source().as_deref(), Some("site-a"));
    // Named, it sends the copy; twice, and what was before it is not forgotten.
    for _ in 0..2 {
        store.plan_reseed("disk", None, Some("lab")).unwrap();
        assert_eq!(source().as_deref(), Some("lab"));
    }
    assert_eq!(store.plan_reseed("disk", None, Some("nobody")).unwrap_err().kind(), Kind::NotFound);
    store.withdraw_reseed("disk").unwrap();
    assert_eq!((source().as_deref(), store.seed_plan("disk").unwrap()), (Some("site-a"), None));
}
