//! What a simulation of a policy tells, held against what the policy then does.

use cdp_core::history::retention;
use cdp_core::ids::*;
use cdp_core::io::sim::Chance;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::simulate::Simulation;

use crate::harness::check::check_volume;
use crate::harness::model::Edit;
use crate::harness::tally::with_seeds;
use crate::harness::workload::Step;
use crate::harness::{Depth, Outcome, Rig, Tally, Workload, rig};

const SEGMENT_BYTES: u64 = 64 << 10;
/// Calls of upkeep without any change after which it is at rest.
const STILL: usize = 6;
/// The journal may be off by this part of it.
const BYTES_PART: u64 = 20;

/// Policies by time, by space, and both; some cannot be met at all.
const POLICIES: [(&str, u64); 9] = [
    ("every-write 20s, every 10s for 60s, named 50s", 0),
    ("every-write 10s, every 7s for 500s", 0),
    ("every-write 5s, named 2s", 0),
    ("every-write 40s, every 5s for 90s, named 1s, at cap thin", 20),
    ("every-write 60s, every 4s for 300s, at cap thin", 4),
    ("named 1s, at cap drop-oldest", 8),
    ("at cap drop-oldest", 12),
    ("every-write 15s, every 9s for 40s, at cap drop-oldest", 6),
    ("every-write 10s, every 5s for 80s, at cap block", 5),
];

fn set_policy(volume: &Volume, text: &str) -> Outcome {
    let policy = retention::parse(text).map_err(|error| error.to_string())?;
    volume.set_retention(policy).map_err(|error| error.to_string())
}

/// Time for upkeep goes by, and no time by which a policy reckons: until nothing changes any more.
fn settle(rig: &Rig) -> Outcome {
    let stand = || {
        let volume = &rig.volumes[0];
        (rig.disk.paths(), volume.oldest(), volume.base_point().lsn, volume.journal_bytes())
    };
    let (mut was, mut still) = (stand(), 0);
    while still < STILL {
        rig.clock.advance(1_500_000_000);
        rig.clock.step_wall(-1_500_000_000);
        let errors = rig.store().maintain();
        ensure!(errors.is_empty(), "{errors:?}");
        let now = stand();
        still = if now == was { still + 1 } else { 0 };
        was = now;
    }
    Ok(())
}

/// A history with rollbacks, markers, restarts, some of it thinned before, some of it easily compressed.
fn history(seed: u64, chance: &mut Chance) -> Outcome<Rig> {
    let mut rig = Rig::new(seed, 1, SEGMENT_BYTES)?;
    let mut workload = match chance.percent(70) {
        true => Workload::turning(seed, 1, rig::VOLUME_BYTES),
        false => Workload::new(seed, 1, rig::VOLUME_BYTES),
    };
    if chance.percent(50) {
        set_policy(&rig.volumes[0], "every-write 60s, every 4s for 200s")?;
    }
    let steps = 150 + chance.below(250);
    for number in 0..steps {
        let broken = |broken| format!("step {number}: {broken}");
        rig.step(&workload.step()).map_err(broken)?;
        if chance.percent(25) {
            let data = format!("{number} and some words. ").repeat(40 + chance.below(600) as usize);
            let edits = vec![Edit::Write { offset: chance.below(40) * 4096, data: data.into_bytes() }];
            rig.step(&Step::Apply { volume: 0, edits, fua: false }).map_err(broken)?;
        }
        rig.step(&Step::Advance { ns: 300_000_000 }).map_err(broken)?;
        rig.step(&Step::Tick).map_err(broken)?;
        rig.step(&Step::Maintain).map_err(broken)?;
    }
    Ok(rig)
}

fn same(volume: &Volume, told: &Simulation) -> Outcome {
    let (oldest, base) = (volume.oldest(), volume.base_point().lsn);
    ensure!(oldest == told.horizon, "the horizon is {oldest:?}, {:?} was told", told.horizon);
    ensure!(base == told.base_lsn, "the base is at {base:?}, {:?} was told", told.base_lsn);
    let differs = (0..=volume.tip_lsn().0 + 1).map(Lsn).find(|lsn| {
        let is_there = volume.keeps(*lsn) && *lsn <= volume.tip_lsn();
        is_there != told.keeps(*lsn)
    });
    ensure!(
        differs.is_none(),
        "{differs:?} is there: {}; {:?}",
        volume.keeps(differs.unwrap_or_default()),
        told.stretches
    );
    let (bytes, told_bytes) = (volume.journal_bytes(), told.journal_bytes_after);
    ensure!(
        bytes.abs_diff(told_bytes) * BYTES_PART <= bytes,
        "the journal takes {bytes} bytes, {told_bytes} were told; before it was {}",
        told.journal_bytes
    );
    Ok(())
}

/// Whoever asks what a policy would leave, and then sets it, must get just that: every state, the horizon, and the space.
#[test]
fn a_policy_does_what_its_simulation_told() {
    let mut tally = Tally::default();
    let (mut gone, mut folds, mut moved, mut full, mut exact, mut runs) = (0, 0, 0, 0, 0, 0);
    with_seeds("a_policy_does_what_its_simulation_told", 380, 54, &mut tally, |seed, tally| {
        let mut chance = Chance::new(seed ^ 0x51);
        let mut rig = history(seed, &mut chance)?;
        let volume = rig.volumes[0].clone();
        let (text, segments) = POLICIES[seed as usize % POLICIES.len()];
        // Some of it is held: by somebody who looks at it, by a clone, by a replica that is behind.
        let mut views = Vec::new();
        let pick = |chance: &mut Chance| {
            let oldest = volume.oldest().0.0;
            let mut lsn = Lsn(oldest + chance.below(volume.tip_lsn().0 - oldest + 1));
            while !volume.keeps(lsn) {
                lsn = lsn.next();
            }
            lsn
        };
        if chance.percent(30) {
            let lsn = pick(&mut chance);
            views.push(View::open(volume.clone(), lsn, "a view").map_err(|error| error.to_string())?);
        }
        if chance.percent(20) {
            let lsn = pick(&mut chance);
            rig.store().clone_volume(&volume, lsn, "child").map_err(|error| error.to_string())?;
        }
        let behind = chance.percent(15).then(|| volume.pin_all_above(pick(&mut chance), "a replica"));
        rig.clock.advance(chance.below(40_000_000_000));
        settle(&rig)?;
        let cap = match segments {
            0 => String::new(),
            segments => format!(", at most {}B", segments * SEGMENT_BYTES),
        };
        let codec = ["lz4", "zstd", "none"][chance.below(3) as usize];
        let policy =
            retention::parse(&format!("{text}{cap}, codec {codec}")).map_err(|error| error.to_string())?;
        let told = volume.simulate_retention(&policy).map_err(|error| error.to_string())?;
        let again = volume.simulate_retention(&policy).map_err(|error| error.to_string())?;
        ensure!(told == again && told.journal_bytes == volume.journal_bytes(), "{told:?}\n{again:?}");
        let names_of = |volume: &Volume| -> Vec<String> {
            let names = volume.named_markers().into_iter().map(|(marker, _)| marker);
            names.filter(|marker| marker.lsn >= volume.oldest().0).map(|marker| marker.name).collect()
        };
        let names = names_of(&volume);
        let there = |volume: &Volume| {
            (volume.oldest().0.0..=volume.tip_lsn().0).filter(|lsn| volume.keeps(Lsn(*lsn))).count() as u64
        };
        let states = there(&volume);
        volume.set_retention(policy).map_err(|error| error.to_string())?;
        settle(&rig)?;
        same(&volume, &told).map_err(|broken| format!("{broken}\n  by {text:?}{cap}"))?;
        ensure!(states - there(&volume) == told.states_gone, "{} states were told to go", told.states_gone);
        let left = names_of(&volume);
        let gone_names: Vec<String> = names.into_iter().filter(|name| !left.contains(name)).collect();
        ensure!(gone_names == told.names_gone, "{gone_names:?} are gone, {:?} were told", told.names_gone);
        // And that is the end of it.
        let after = volume.simulate_retention(&volume.retention()).map_err(|error| error.to_string())?;
        ensure!(after.states_gone == 0 && after.journal_bytes_after == after.journal_bytes, "{after:?}");
        tally.views += check_volume(&volume, &rig.models[0], Depth::Quick, &mut chance)?;
        folds += volume.part_list().iter().filter(|part| part.segment.fold.is_some()).count();
        gone += told.states_gone;
        moved += usize::from(told.horizon.0 > Lsn::ZERO);
        full += usize::from(told.is_full);
        exact += usize::from(volume.journal_bytes() == told.journal_bytes_after);
        runs += 1;
        drop((views, behind));
        rig.models.clear();
        tally.take(&rig.disk);
        Ok(())
    });
    println!(
        "{runs} policies: {gone} states gone, {folds} folds, {moved} horizons moved, {full} could not be met, \
         {exact} to the byte; {tally}"
    );
    let enough = runs < 20 || gone > 500 && folds > 20 && moved > 10 && full > 0 && full < runs / 2;
    assert!(enough, "too little happened");
}
