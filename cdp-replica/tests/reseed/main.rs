//! A replica that fell behind, or that begins with an image somebody carried there, gets only what differs; whatever happens on
//! the way, nothing that was there is lost, and nothing wrong is shown.

mod pair;
mod stuck;

use std::io::IoSlice;
use std::path::Path;

use cdp_core::base::BaseWriter;
use cdp_core::error::Kind;
use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, PowerLoss};
use cdp_core::store::CreateOptions;
use cdp_core::store::seeds::SeedFrom;
use cdp_core::volume::rollback::Back;
use cdp_replica::fault::FaultKind;
use cdp_replica::wire::control::CODING_RANGES;
use pair::*;

/// What may go over the line for so many blocks that differ in any way: themselves, one hash of each range, and of what
/// differs one of each block on the way back; and what two sides say to each other anyway.
fn most_there(blocks: u64) -> u64 {
    blocks * (BLOCK_BYTES + 8) + RANGES * 100 + 8_000
}
fn most_back() -> u64 {
    RANGES * (256 * 16 + 16) + 8_000
}

/// Somebody's line takes a night for the whole disk, and a few blocks differ: they are what goes over it. The old copy's
/// instants stay readable under another name, and the site's own settings stay.
#[test]
fn only_what_differs_is_sent() {
    let mut pair = Pair::behind(1);
    let old = states(&pair.b.volume());
    let changed = pair.change(2, 20);
    let policy = cdp_core::history::retention::parse("every-write 12h").unwrap();
    pair.b.volume().set_retention(policy.clone()).unwrap();
    pair.b.volume().add_replica("c:1", 0, false).unwrap();
    pair.ask(None);
    // It is a replica like any other until the new one is whole.
    assert_eq!(states(&pair.b.volume()), old);
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert_eq!(ended.fault, None);
    assert!(ended.there <= most_there(changed), "{} bytes for {changed} blocks", ended.there);
    assert!(ended.back <= most_back(), "{} bytes back", ended.back);
    pair.check_equal();
    let (new, aside) = (pair.b.volume(), pair.b.aside().unwrap());
    assert_eq!(new.retention(), policy);
    assert_eq!(new.replicas()[0].address, "c:1");
    assert_eq!(states(&aside), old);
    assert!(aside.replicas().is_empty() && !aside.is_primary());
    // It goes on as a replica does, and all of it is there after a power cut.
    write(&pair.a.volume(), 9, b"later");
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    let name = aside.name().to_owned();
    drop((new, aside));
    pair.b.store = None;
    pair.b = Site::open(pair.b.disk.crash_power(3), pair.b.clock.clone());
    pair.check_equal();
    assert_eq!(states(&pair.b.aside().unwrap()), old);
    // It is only shown.
    let aside = pair.b.aside().unwrap();
    let refused =
        pair.b.store().promote(&name, &[(aside.clone(), aside.tip_lsn())], EpochNumber(0), "a test");
    assert_eq!(refused.err().map(|error| error.kind()), Some(Kind::Refused));
    assert_eq!(aside.add_replica("d:1", 0, false).unwrap_err().kind(), Kind::Refused);
    assert_eq!(pair.b.store().plan_reseed(&name, None, None).unwrap_err().kind(), Kind::Refused);
    let clone = pair.b.store().clone_volume(&aside, old[0].0, "trial").unwrap();
    assert!(content(&clone, Lsn::ZERO) == old[0].1);
    // And goes when somebody says so.
    pair.b.store().delete_volume("trial").unwrap();
    drop((aside, clone));
    pair.b.store().delete_volume(&name).unwrap();
    pair.check_equal();
}

/// Where nothing differs next to nothing is sent; where everything does, little more than everything.
#[test]
fn the_ends_of_the_scale() {
    let mut pair = Pair::behind(5);
    pair.ask(None);
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert!(ended.fault.is_none() && ended.there < most_there(0) && ended.back < 8_000, "{ended:?}");
    pair.check_equal();
    let mut pair = Pair::apart(7);
    let options = CreateOptions::new(SIZE_BYTES - 512);
    let mut fill = |base: &mut BaseWriter| image(base, 99);
    let other = pair.b.store().create_volume("other", &options, Some(&mut fill)).unwrap();
    pair.ask(Some(SeedFrom::Volume { id: other.identity().id, at: None }));
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert_eq!(ended.fault, None);
    assert!(ended.there < SIZE_BYTES + RANGES * 200 + 8_000, "{ended:?}");
    pair.check_equal();
    assert!(pair.b.aside().is_none() && pair.b.store().seed_plans().unwrap().is_empty());
}

/// The line is cut between any two frames: until the new copy is whole the old one is what it was, what was compared is not
/// compared again, and the end is the same.
#[test]
fn a_cut_anywhere_costs_little() {
    let mut resumed = 0;
    let mut whole = 0;
    for cut in 1.. {
        let mut pair = Pair::behind(11);
        let old = states(&pair.b.volume());
        pair.change(13, 40);
        pair.ask(None);
        let first = pair.connect(Trouble::CutAfter(cut), &mut |_| {});
        assert_eq!(first.fault, None);
        whole = whole.max(first.frames);
        match pair.b.aside() {
            None => assert_eq!(states(&pair.b.volume()), old, "after {cut} frames"),
            Some(aside) => assert_eq!(states(&aside), old, "after {cut} frames"),
        }
        write(&pair.a.volume(), 2, b"meanwhile");
        let second = pair.connect(Trouble::Nothing, &mut |_| {});
        assert_eq!(second.fault, None, "after {cut} frames");
        resumed += u64::from(second.resumed_at > 0);
        pair.check_equal();
        assert_eq!(states(&pair.b.aside().unwrap()), old, "after {cut} frames");
        if first.frames < cut {
            break;
        }
    }
    assert!(whole > 15 && resumed > 1, "{whole} frames, {resumed} went on where they were");
}

/// A bit that flips on the way is never believed.
#[test]
fn a_flipped_bit_is_not_believed() {
    let there = {
        let mut pair = Pair::behind(17);
        pair.change(19, 12);
        pair.ask(None);
        pair.connect(Trouble::Nothing, &mut |_| {}).there
    };
    let mut met = 0;
    for at in (0..there).step_by(there as usize / 60) {
        let mut pair = Pair::behind(17);
        pair.change(19, 12);
        pair.ask(None);
        let first = pair.connect(Trouble::Flip(at), &mut |_| {});
        met += u64::from(first.fault.is_some());
        assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None, "byte {at}: {first:?}");
        pair.check_equal();
    }
    assert!(met > 55, "{met}");
}

/// The second site's machine dies at any moment: there is the old copy with all of its instants, or the new one and the old one
/// beside it; and the reseed ends as it would have.
#[test]
fn the_second_site_dies_anywhere() {
    let mut pair = Pair::behind(23);
    let old = states(&pair.b.volume());
    pair.change(29, 30);
    pair.ask(None);
    pair.b.disk.record_boundaries(true);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    let boundaries = pair.b.disk.take_boundaries();
    pair.b.disk.record_boundaries(false);
    let clock = pair.b.clock.clone();
    let mut chance = Chance::new(31);
    let (mut before, mut behind, mut ended) = (0, 0, 0);
    let count = boundaries.len();
    for (number, boundary) in boundaries.into_iter().enumerate() {
        // Each of the last, where one takes the other's place; some of those at which blocks are written.
        if number + 150 < count && !chance.percent(2) {
            continue;
        }
        for seed in 0..3 {
            let disk = boundary.snapshot.mount(seed);
            let disk = match seed {
                0 => disk.crash_process(),
                _ => disk.crash_power_with(PowerLoss::seeded(chance.bits())),
            };
            pair.b = Site::open(disk, clock.clone());
            pair.feeding = Default::default();
            match pair.b.aside() {
                None => {
                    before += 1;
                    assert_eq!(states(&pair.b.volume()), old, "boundary {number}");
                }
                Some(aside) => {
                    behind += 1;
                    assert_eq!(states(&aside), old, "boundary {number}");
                    let new = pair.b.volume();
                    assert!(content(&new, new.tip_lsn()) == content(&pair.a.volume(), new.tip_lsn()));
                }
            }
            if seed == number as u64 % 3 && chance.percent(30) {
                ended += 1;
                assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None, "boundary {number}");
                pair.check_equal();
                assert_eq!(states(&pair.b.aside().unwrap()), old, "boundary {number}");
            }
        }
    }
    assert!(
        before > 20 && behind > 20 && ended > 10,
        "{count}: {before} before, {behind} behind, {ended} ended"
    );
}

/// The first site's machine dies in the middle: what was compared of the same state counts when it is back.
#[test]
fn the_first_site_dies() {
    let mut resumed = 0;
    for cut in (8..40).step_by(4) {
        let mut pair = Pair::behind(37);
        pair.change(41, 200);
        pair.ask(None);
        pair.connect(Trouble::CutAfter(cut), &mut |_| {});
        pair.a.store = None;
        pair.a = Site::open(pair.a.disk.crash_power(cut), pair.a.clock.clone());
        write(&pair.a.volume(), 2, b"behind it");
        let ended = pair.connect(Trouble::Nothing, &mut |_| {});
        assert_eq!(ended.fault, None, "after {cut} frames");
        resumed += u64::from(ended.resumed_at > 0);
        pair.check_equal();
    }
    assert!(resumed > 0);
}

/// An image that was carried by hand, as a volume or as a file, is as good as a copy that came over the line; one that somebody
/// writes to meanwhile does no harm.
#[test]
fn an_image_that_was_carried_there() {
    let mut pair = Pair::apart(43);
    let changed = pair.change(47, 15);
    let options = CreateOptions::new(SIZE_BYTES);
    let mut fill = |base: &mut BaseWriter| image(base, 43);
    let carried = pair.b.store().create_volume("carried", &options, Some(&mut fill)).unwrap();
    pair.ask(Some(SeedFrom::Volume { id: carried.identity().id, at: Some(Lsn::ZERO) }));
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert_eq!(ended.fault, None);
    assert!(ended.there <= most_there(changed), "{} bytes for {changed} blocks", ended.there);
    pair.check_equal();
    assert_eq!(content(&carried, Lsn::ZERO).len() as u64, SIZE_BYTES);

    let mut pair = Pair::apart(43);
    pair.change(47, 15);
    let path = Path::new("/carried.raw");
    let file = pair.b.disk.create(path).unwrap();
    let bytes = content(&carried, Lsn::ZERO);
    // It lacks its last blocks.
    file.write_at(0, &[IoSlice::new(&bytes[..bytes.len() - 9000])]).unwrap();
    assert_eq!(
        pair.b.store().plan_reseed(NAME, Some(SeedFrom::File("/missing".into())), None).unwrap_err().kind(),
        Kind::NotFound
    );
    pair.ask(Some(SeedFrom::File(path.to_owned())));
    let mut turn = 0u64;
    let mut faults = 0;
    while let Some(fault) = pair
        .connect(Trouble::Nothing, &mut |_| {
            // Where its content is of use, and was looked at a moment ago.
            turn += 1;
            if turn < 40 {
                for block in 0..40 {
                    let at = (block * 29 + turn * 7) % BLOCKS * BLOCK_BYTES;
                    file.write_at(at, &[IoSlice::new(&turn.to_le_bytes())]).unwrap();
                }
            }
        })
        .fault
    {
        assert_eq!(fault.kind, FaultKind::Coding, "{fault}");
        faults += 1;
        assert!(faults < 30);
    }
    assert!(faults > 0, "nobody noticed");
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert!(ended.fault.is_none(), "{ended:?}");
    pair.check_equal();
}

/// The first site is lost while the reseed is under way: the old copy goes on as the primary, and nothing takes its place.
#[test]
fn a_promotion_ends_it() {
    let mut pair = Pair::behind(53);
    pair.change(59, 60);
    pair.ask(None);
    let mut turn = 0;
    let ended = pair.connect(Trouble::Nothing, &mut |pair| {
        turn += 1;
        // Ranges were told and compared, and the patches are about to come.
        if turn == 4 {
            let volume = pair.b.volume();
            let members = [(volume.clone(), volume.tip_lsn())];
            pair.b.store().promote(NAME, &members, EpochNumber(0), "a test").unwrap();
        }
    });
    assert_eq!(ended.fault.map(|fault| fault.kind), Some(FaultKind::Fenced), "{turn} turns");
    assert!(pair.b.volume().is_primary() && pair.b.aside().is_none());
    write(&pair.b.volume(), 1, b"it goes on");
    assert_eq!(
        pair.connect(Trouble::Nothing, &mut |_| {}).fault.map(|fault| fault.kind),
        Some(FaultKind::Fenced)
    );
    assert_eq!(pair.b.store().plan_reseed(NAME, None, None).unwrap_err().kind(), Kind::Refused);
}

/// The site that lost cannot cut its journal back to the fork, or nobody wants to wait for that: it is made anew from the
/// site that won, and what only it had stays there to be looked at.
#[test]
fn a_fenced_primary_is_made_anew() {
    let mut pair = Pair::behind(71);
    let volume = pair.b.volume();
    pair.b.store().promote(NAME, &[(volume.clone(), volume.tip_lsn())], EpochNumber(0), "a test").unwrap();
    write(&volume, 4, b"of the site that won");
    pair.change(73, 9);
    let tail = states(&pair.a.volume());
    volume.add_replica("b:1", 0, false).unwrap();
    drop(volume);
    // From here on the other way.
    std::mem::swap(&mut pair.a, &mut pair.b);
    pair.feeding = Default::default();
    assert!(pair.connect(Trouble::Nothing, &mut |_| {}).fault.is_some(), "a primary takes nothing");
    assert_eq!(pair.b.volume().role().word(), "fenced");
    assert!(pair.connect(Trouble::Nothing, &mut |_| {}).fault.is_some(), "nor does one that is fenced");
    pair.ask(None);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    pair.check_equal();
    assert_eq!(pair.b.volume().role().word(), "replica");
    assert!(states(&pair.b.aside().unwrap()) == tail, "what only it had is gone");
}

/// A site stepped down with writes that only it has, another one went on before them, and of the record that both have it
/// keeps nothing any more: `resync` cannot cut there, and says what helps; that helps, and loses nothing.
#[test]
fn a_replica_whose_fork_is_not_kept() {
    let mut pair = Pair::behind(89);
    let volume = pair.b.volume();
    pair.b.store().promote(NAME, &[(volume.clone(), volume.tip_lsn())], EpochNumber(0), "a test").unwrap();
    let fork = volume.epochs().newest().start.previous();
    write(&volume, 4, b"of the site that won");
    volume.add_replica("b:1", 0, false).unwrap();
    drop(volume);
    pair.a.volume().remove_replica("b:1").unwrap();
    pair.a.volume().set_retention(retention::parse("every-write 1s, named 1s").unwrap()).unwrap();
    for turn in 0..40 {
        pair.change(97 + turn, 60);
        pair.a.clock.advance(2_000_000_000);
        assert!(pair.a.store().tick().is_empty() && pair.a.store().maintain().is_empty());
    }
    assert!(pair.a.volume().oldest().0 > fork, "{:?}, {fork:?}", pair.a.volume().oldest());
    pair.a.volume().demote().unwrap();
    std::mem::swap(&mut pair.a, &mut pair.b);
    pair.feeding = Default::default();
    let fault = pair.connect(Trouble::Nothing, &mut |_| {}).fault.unwrap();
    assert_eq!(fault.kind, FaultKind::Fork, "{fault}");
    let loser = pair.b.volume();
    let refused = pair.b.store().resync(NAME, &loser.elsewhere().unwrap()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Refused, "{refused:?}");
    assert!(refused.hint_text().unwrap().contains("`cdp replica reseed disk`"), "{refused:?}");
    let (tip, newest) = (loser.tip_lsn(), content(&loser, loser.tip_lsn()));
    drop(loser);
    pair.ask(None);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    pair.check_equal();
    let aside = pair.b.aside().unwrap();
    assert!(aside.tip_lsn() == tip && content(&aside, tip) == newest, "what only it had is gone");
}

/// The first site goes back to a state that the replica never had, since it began as a copy of a later one. Nothing wrong is
/// shown, the link says what to do, and a reseed does it.
#[test]
fn a_rollback_to_before_the_copy() {
    let mut pair = Pair::behind(79);
    pair.change(83, 5);
    pair.ask(None);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    let copied = pair.b.volume().oldest().0;
    assert!(copied > Lsn(5));
    pair.a.volume().rollback(Back::To(Lsn(2)), "a test").unwrap();
    let fault = pair.connect(Trouble::Nothing, &mut |_| {}).fault.unwrap();
    assert_eq!(fault.kind, FaultKind::Behind, "{fault}");
    assert!(fault.text.contains("cdp replica reseed"), "{fault}");
    let before = states(&pair.b.volume());
    pair.ask(None);
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    pair.check_equal();
    // Now there are two that stepped aside.
    let asides =
        pair.b.store().volumes().into_iter().filter(|volume| volume.name().starts_with("disk-until-"));
    assert!(asides.into_iter().any(|aside| states(&aside) == before));
}

/// Somebody asks for it while the link is at work, because a block went bad there say: it begins by itself.
#[test]
fn a_link_that_is_at_work_ends_for_it() {
    let mut pair = Pair::behind(89);
    pair.change(97, 30);
    let mut turn = 0;
    let ended = pair.connect(Trouble::Nothing, &mut |pair| {
        turn += 1;
        // The two agreed that the log goes on.
        if turn == 3 {
            pair.ask(None);
        }
        if (3..12).contains(&turn) {
            // It has something to do.
            write(&pair.a.volume(), turn, b"on and on");
        }
    });
    assert_eq!(ended.fault.map(|fault| fault.kind), Some(FaultKind::Closing), "{turn} turns");
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    assert!(pair.b.aside().is_some());
    pair.check_equal();
}

/// Asked for by mistake, or in vain: it can be taken back; clones of the old copy keep it where it is; a sender that cannot
/// compare sends everything.
#[test]
fn what_stands_in_the_way() {
    let mut pair = Pair::behind(61);
    pair.change(67, 10);
    let store = pair.b.store().clone();
    let clone = store.clone_volume(&pair.b.volume(), pair.b.volume().tip_lsn(), "work").unwrap();
    let refused = store.plan_reseed(NAME, None, None).unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused, "{refused}");
    store.hydrate_volume("work", &mut |_, _| Ok(())).unwrap();
    pair.ask(None);
    assert!(store.withdraw_reseed(NAME).unwrap() && !store.withdraw_reseed(NAME).unwrap());
    // The log is still there, so it simply goes on.
    assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
    assert!(pair.b.aside().is_none());
    pair.check_equal();
    drop(clone);

    pair.ask(None);
    pair.codings &= !CODING_RANGES;
    let ended = pair.connect(Trouble::Nothing, &mut |_| {});
    assert_eq!(ended.fault, None);
    pair.check_equal();
    assert!(pair.b.aside().is_some());
}
