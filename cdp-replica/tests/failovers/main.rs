//! Failovers, seeded: both sites with simulated disks and clocks, a network that cuts, stalls, doubles and flips, people
//! who promote, step down, resync and reseed at any moment, and a naive model of what every copy has to show.

/// Ends a history that is not as it should be.
macro_rules! broken {
    ($($text:tt)*) => { return Err(format!($($text)*)) };
}

mod judge;
mod model;
mod onlookers;
mod people;
mod site;
mod takeovers;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use world::{Met, Story, World};

/// Steps of one history before it is healed.
const STEPS: usize = 280;
/// Of CI. `CDP_SEEDS=5000` for more, `CDP_SEEDS_FROM=N` for those from N on, `CDP_SIM_SEED=N` for that one alone, with `CDP_SIM_TRACE=1` step by step;
/// `CDP_SEEDS_STORY=1` those of one story, see [`Story`].
const SEEDS: u64 = 104;
/// Played beside them, for what they found. 110: an instant was told to be complete, a crash took the memory of it, and with the
/// wall clock set back a later record got the same timestamp; and a primary whose disk refused an append told as complete the very
/// instant of that record, which was there after the restart. 338: a reseed was asked for, a resync came before it and made an
/// orphan, and the new copy could not take the old one's place until somebody did what the link said. 239: a copy was held for
/// the other site at a record that a resync then cut away, and nothing was sent there any more. 752: a site that came back got the
/// end of the state that the other one had taken over with, and a rollback to it, in one piece, and refused them for ever; and a new
/// replica was offered a newest state before there was anything that it could lie over. 24129: the horizon came to rest inside of a gap, where
/// half of a state was shown after a restart. 25414: a copy in another one's place began with what that one held for its replicas.
const KEPT: &[u64] = &[110, 239, 338, 752, 24129, 25414];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn history(seed: u64) -> Result<Met, String> {
    let mut world = World::new(seed);
    let told = catch_unwind(AssertUnwindSafe(|| {
        world.run(STEPS)?;
        world.heal()
    }));
    match told {
        Ok(told) => told.map(|()| world.met),
        Err(_) => Err("it panicked, as said above".to_owned()),
    }
}

/// Somebody loses a site, or only believes so, promotes the other one, and brings the first one back: an acknowledged
/// write is gone after a planned failover, a replica shows what never was, two histories mix without anybody noticing, or
/// what only the losing site had is not there any more.
#[test]
fn no_failover_loses_or_mixes_anything() {
    let seeds: Vec<u64> = match (number("CDP_SIM_SEED"), number("CDP_SEEDS"), number("CDP_SEEDS_FROM")) {
        (Some(seed), _, _) => vec![seed],
        (None, Some(count), from) => (from.unwrap_or(0)..)
            .filter(|seed| number("CDP_SEEDS_STORY").is_none_or(|story| Story::of(*seed) as u64 == story))
            .take(count as usize)
            .collect(),
        (None, None, _) => (0..SEEDS).chain(KEPT.iter().copied()).collect(),
    };
    let next = AtomicUsize::new(0);
    let told: Mutex<(Met, Vec<u64>)> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = history(seed);
                    let mut told = told.lock().unwrap();
                    match one {
                        Ok(one) => told.0.add(&one),
                        Err(what) => {
                            println!("seed {seed}: {what}");
                            told.1.push(seed);
                        }
                    }
                }
            });
        }
    });
    let (met, broken) = told.into_inner().unwrap();
    println!("{met:#?}");
    assert!(broken.is_empty(), "broken with seeds {broken:?}: CDP_SIM_SEED=N repeats one");
    if seeds.len() as u64 >= SEEDS && number("CDP_SEEDS_STORY").is_none() {
        assert!(met.failovers >= 200 && met.drained > 20 && met.resyncs > 80 && met.orphans > 50, "{met:?}");
        assert!(met.reseeds > 100 && met.asides > 50 && met.withdrawn > 0, "{met:?}");
        assert!(met.outages > 50 && met.shown > 200 && met.takeovers > 2, "{met:?}");
        assert!(met.views > 100 && met.looks > 500 && met.over > 3, "{met:?}");
        assert!(met.to_points > 10 && met.crashes > 500 && met.cuts > 100 && met.flips > 20, "{met:?}");
        assert!(
            met.bases_moved > 10 && met.folds > 10 && met.rollbacks > 100 && met.refused_full > 20,
            "{met:?}"
        );
    }
}
