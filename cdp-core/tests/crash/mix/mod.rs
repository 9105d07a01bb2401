//! Everything at once, against the naive model: writes, rollbacks, undos, growth, views, clones of clones, clones and
//! rollbacks of groups, hydration, the trash and its end, full disks, advance, thinning, differences, deaths and power losses; then boundaries
//! of what comes next. What one of these does right by itself, two of them together may not.

mod acts;
mod found;
mod taken;
mod world;

use cdp_core::io::sim::{Chance, PowerLoss, SimClock};

use crate::harness::check::{Depth, check_volume};
use crate::harness::rig;
use crate::harness::tally::with_seeds;
use crate::harness::{Outcome, Tally, wrap};
use taken::{Taken, rob};
use world::{Tallied, World};

const SEGMENT_BYTES: u64 = 64 << 10;
/// Of each seed; all of its volumes are looked at after each. With more boundaries than that, some of them.
const CRASHES_MAX: usize = 60;

fn begun(seed: u64) -> Outcome<World> {
    let mut world = World::new(seed, 2 + seed.is_multiple_of(3) as usize, SEGMENT_BYTES)?;
    for name in world.live() {
        world.set_policy(&name)?;
    }
    Ok(world)
}

fn live(world: &mut World, steps: usize, seed: u64) -> Outcome {
    let mut chance = Chance::new(seed ^ 0x0e0e);
    for number in 0..steps {
        world.step().map_err(|broken| format!("step {number}: {broken}"))?;
        if number % 20 == 19 {
            world.unmark_some().map_err(|broken| format!("step {number}: {broken}"))?;
        }
        if number % 60 == 59 {
            look(world, Depth::Quick, &mut chance).map_err(|broken| format!("step {number}: {broken}"))?;
        }
    }
    look(world, Depth::Every, &mut chance)
}

fn look(world: &World, depth: Depth, chance: &mut Chance) -> Outcome {
    for volume in world.store().volumes() {
        let model = &world.members[volume.name()].model;
        check_volume(&volume, model, depth, chance)
            .map_err(|broken| format!("{}: {broken}", volume.name()))?;
        let retained = volume.retained().map_err(|error| error.to_string())?;
        let oldest = volume.oldest().0;
        let gone = retained.kept.iter().find(|lsn| **lsn >= oldest && !volume.keeps(**lsn));
        ensure!(gone.is_none() || volume.retention().bytes_max.is_some(), "{}: {gone:?}", volume.name());
    }
    Ok(())
}

/// Crashes at boundaries of the last steps, by both deaths.
fn crash(world: &mut World, steps: usize, seed: u64, tally: &mut Tally) -> Outcome {
    world.disk.record_boundaries(true);
    world.immortal = true;
    for number in 0..steps {
        world.step().map_err(|broken| format!("late step {number}: {broken}"))?;
    }
    let boundaries = world.disk.take_boundaries();
    let mut chance = Chance::new(seed ^ 0x00c4);
    let apart = boundaries.len().div_ceil(CRASHES_MAX).max(1);
    for (number, boundary) in boundaries.iter().enumerate().skip(seed as usize % apart).step_by(apart) {
        let power = chance.percent(60);
        let snapshot = boundary.snapshot.mount(seed);
        let disk = match power {
            true => snapshot.crash_power_with(match chance.percent(30) {
                true => PowerLoss::all_lost(),
                false => PowerLoss::seeded(chance.bits()),
            }),
            false => snapshot.crash_process(),
        };
        tally.crashes += 1;
        world.tallied.crashes += 1;
        let place = || {
            format!(
                "boundary {number}: before{} operation {}, {:?} of {}; power {power}",
                if boundary.during { " the end of" } else { "" },
                boundary.operation,
                boundary.what,
                boundary.path
            )
        };
        let depth = if chance.percent(3) { Depth::Every } else { Depth::Quick };
        let clock = SimClock::new(chance.bits());
        let turned = disk.paths().iter().any(|path| path.ends_with("/operation"));
        let around = world.around(boundary.operation);
        let store = rig::open(&disk, &clock, &wrap::nothing())
            .map_err(|broken| format!("{broken}\n  {}", place()))?;
        world
            .check(&store, around, (power, turned), depth, &mut chance)
            .map_err(|broken| format!("{broken}\n  {}", place()))?;
        tally.take(&disk);
    }
    Ok(())
}

fn mixture(seed: u64, steps: usize, tally: &mut Tally) -> Outcome<Tallied> {
    let mut world = begun(seed)?;
    live(&mut world, steps, seed)?;
    crash(&mut world, 25, seed, tally)?;
    tally.take(&world.disk);
    Ok(world.tallied)
}

/// Whoever clones, rolls back, thins, deletes and loses power in any order must find every state that was kept, in every
/// volume, and none of another's.
#[test]
fn everything_at_once() {
    let mut tally = Tally::default();
    let mut done = Tallied::default();
    let mut seeds = 0;
    with_seeds("everything_at_once", 70_000, 3, &mut tally, |seed, tally| {
        done.add(&mixture(seed, 400, tally)?);
        seeds += 1;
        Ok(())
    });
    println!("{seeds} seeds, {done:?}; {tally}");
    if seeds >= 3 {
        assert!(done.clones > 8 && done.hydrated > 2 && done.group_turns > 3 && done.folds > 3, "{done:?}");
    }
}

/// So often files are taken, in steps.
const STEPS_PER_ROBBERY: usize = 20;

/// Whoever loses files of a store (a half restored backup, a bad repair of the filesystem, a person) must not be handed anything but
/// what was written, and must hear of it.
#[test]
fn files_are_taken_away() {
    let mut tally = Tally::default();
    let mut done = Taken::default();
    let mut seeds = 0;
    with_seeds("files_are_taken_away", 71_000, 3, &mut tally, |seed, tally| {
        let mut world = begun(seed)?;
        for number in 0..240 {
            world.step().map_err(|broken| format!("step {number}: {broken}"))?;
            if number % STEPS_PER_ROBBERY == STEPS_PER_ROBBERY - 1 {
                let taken = rob(&world, seed ^ (number as u64) << 20);
                done.add(&taken.map_err(|broken| format!("step {number}: {broken}"))?);
            }
        }
        seeds += 1;
        tally.take(&world.disk);
        Ok(())
    });
    println!("{seeds} seeds, {done:?}; {tally}");
    if seeds >= 3 {
        assert!(done.refused > 10 && done.exact > 1000 && done.written > 500, "{done:?}");
    }
}
