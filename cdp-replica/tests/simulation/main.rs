//! Both sites of a link in one process: simulated disks that crash, a network that cuts, stalls and flips bits.

mod world;

use cdp_core::ids::Lsn;
use cdp_replica::fault::FaultKind;
use cdp_replica::wire::control::CODING_LZ4;
use world::{Plan, World};

/// Somebody loses the first site and finds that the second one has a hole, a write that never was durable, or another
/// history: whatever the network and both disks do, the replica is a prefix of the primary at every instant, and
/// catches up once it is let. `CDP_SEEDS=5000` for more than CI's share.
#[test]
fn the_replica_is_a_prefix_whatever_happens() {
    let mut met = world::Met::default();
    let seeds = std::env::var("CDP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let mut world = World::new(seed, Plan::everything());
        world.run(400);
        world.heal();
        met.add(&world.met);
    }
    println!("{met:?}");
    assert!(met.cuts > 20 && met.flips > 5 && met.crashes_a > 10 && met.crashes_b > 10, "{met:?}");
    assert!(met.rollbacks > 5 && met.resumed > 40 && met.coded > 500, "{met:?}");
}

/// On a quiet line everything arrives, and nothing is acknowledged that a power cut takes away.
#[test]
fn a_quiet_link_catches_up_and_what_it_acknowledged_stays() {
    let mut world = World::new(7, Plan::quiet());
    world.run(200);
    world.heal();
    let acknowledged = world.acknowledged();
    assert!(acknowledged > Lsn(20), "{acknowledged:?}");
    world.crash_b(true);
    assert!(world.tip_b() >= acknowledged);
    world.check();
}

/// Nobody writes, and one of the two restarts: what was told to be over is so on the next connection too, and the link goes on
/// without waiting for a write. Else a quiet night would begin with a replica that falls behind, and end with a planned
/// failover that finds nobody up to date.
#[test]
fn a_restart_of_an_idle_site_does_not_stop_the_link() {
    let mut world = World::new(13, Plan::quiet());
    world.run(60);
    world.heal();
    world.idle();
    for power in [false, true, false] {
        world.crash_b(power);
        world.idle();
    }
}

/// A sender that has another history of the same volume must not get a byte of it into the replica.
#[test]
fn a_fork_stops_the_link_and_keeps_both() {
    let mut world = World::new(9, Plan::quiet());
    world.run(60);
    world.heal();
    let before = world.tip_b();
    world.fork_a();
    let fault = world.connect_until_it_ends();
    assert_eq!(fault.kind, FaultKind::Fork, "{fault}");
    assert_eq!(world.tip_b(), before);
}

/// The second site takes over while the first is still there: within the connection the first one hears of it and
/// answers no write any more, and when it comes back later it is told again. Nothing of the new history is touched.
#[test]
fn a_promotion_fences_the_old_primary() {
    for is_connected in [true, false] {
        let mut world = World::new(11, Plan::quiet());
        world.run(60);
        world.heal();
        if is_connected {
            world.keep_connected();
        }
        world.promote_b();
        let tip = world.tip_b();
        let fault = match is_connected {
            true => world.talk_until_it_ends(),
            false => world.connect_until_it_ends(),
        };
        assert_eq!(fault.kind, FaultKind::Fenced, "{fault}");
        world.a_is_fenced();
        assert_eq!(world.tip_b(), tip);
        // Again, and the same.
        assert_eq!(world.connect_until_it_ends().kind, FaultKind::Fenced);
        assert_eq!(world.tip_b(), tip);
    }
}

/// A disk that began as an image gets a replica while it is in use: the copy is broken off by everything that can
/// happen, goes on where it was, and what comes out of it is the primary's history from that state on.
#[test]
fn a_first_copy_survives_everything() {
    let mut met = world::Met::default();
    for seed in 0..30 {
        let mut world = World::new(seed, Plan::with_copy());
        world.run(200);
        world.heal();
        met.add(&world.met);
    }
    println!("{met:?}");
    assert!(met.cuts > 20 && met.crashes_a > 10 && met.crashes_b > 10 && met.copies_resumed > 5, "{met:?}");
}

/// Somebody at the second site has the replica copied anew now and then, in the middle of everything: it is a prefix of the
/// primary at every instant all the same, and every old copy that stepped aside shows what it showed.
#[test]
fn reseeds_in_the_middle_of_everything() {
    let mut met = world::Met::default();
    for seed in 0..30 {
        let mut world = World::new(seed, Plan::with_reseeds());
        world.run(250);
        world.heal();
        met.add(&world.met);
    }
    println!("{met:?}");
    assert!(met.cuts > 20 && met.flips > 5 && met.crashes_a > 10 && met.crashes_b > 10, "{met:?}");
    assert!(met.asked > 100 && met.reseeded > 30, "{met:?}");
}

/// After outages of any length the newest state goes ahead of the history, and everything that can happen happens in the middle
/// of it: what is shown is a state of the primary, whole, under its own name; between it and the history nothing is; and in the end
/// there is no gap.
#[test]
fn the_newest_state_first_in_the_middle_of_everything() {
    let mut met = world::Met::default();
    let seeds = std::env::var("CDP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(40);
    for seed in 0..seeds {
        let mut world = World::new(seed, Plan::with_newest_first());
        world.run(400);
        world.heal();
        met.add(&world.met);
    }
    println!("{met:?}");
    assert!(met.cuts > 20 && met.flips > 5 && met.crashes_a > 10 && met.crashes_b > 10, "{met:?}");
    assert!(met.begun > 40 && met.went_on > 10 && met.shown > 100 && met.refused > 500, "{met:?}");
    assert!(met.dropped > 2 && met.filled > 2 && met.rollbacks > 5, "{met:?}");
}

/// A block went bad at the second site, and its next version travels as what changed in it: the replica must not get a
/// guess, and must not be stuck for ever either. The payload comes as it is, and the block is good again.
#[test]
fn what_a_bad_block_is_missing_comes_whole() {
    let mut world = World::new(17, Plan::quiet());
    world.write_block(3, &[0xab; 4096]);
    world.heal();
    world.rot_at_b(&[0xab; 4096]);
    world.write_block(3, &[0xcd; 700]);
    let before = world.tip_b();
    let fault = world.connect_until_it_ends();
    assert_eq!(fault.kind, FaultKind::Coding, "{fault}");
    assert_eq!(world.tip_b(), before, "something of it was appended");
    world.restrict_codings(CODING_LZ4);
    world.heal_unread();
    world.check_tip();
}

/// A third site is fed by the second one: it gets the same history, and says no more than the second one knows.
#[test]
fn a_replica_feeds_another() {
    let mut world = World::new(13, Plan::quiet());
    world.run(80);
    world.heal();
    world.feed_third();
}
