//! A machine moves in by two passes, on the real binary: the second one must find everything that changed, say when it
//! cannot, and leave the volume's past alone.

mod cli;

use cli::*;
use std::os::unix::fs::FileExt;

const MIB: usize = 1 << 20;

fn source(home: &Home) -> Vec<u8> {
    // An end that is no block's.
    let mut bytes: Vec<u8> =
        (0..9 * MIB as u32 + 1536).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    bytes[3 * MIB..5 * MIB].fill(0);
    std::fs::write(home.path("machine.img"), &bytes).unwrap();
    bytes
}

fn restored(home: &Home, point: &str) -> Vec<u8> {
    let ran = home.run(&["restore", &format!("web@{point}"), "out.img", "--force"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    std::fs::read(home.path("out.img")).unwrap()
}

fn two_passes(home: &Home) {
    let first = source(home);
    let created = home.json(&["create", "web", "--from", "machine.img", "--first-pass"]);
    assert_eq!(created["inconsistent"], serde_json::Value::Null);
    let same = home.json(&["import", "web", "--again", "machine.img", "--mark", "same"]);
    assert_eq!(
        (&same["written_bytes"], same["compared_bytes"].as_u64()),
        (&0.into(), Some(first.len() as u64))
    );

    let file = std::fs::OpenOptions::new().write(true).open(home.path("machine.img")).unwrap();
    file.write_all_at(&[7; 100], 4000).unwrap();
    file.write_all_at(&[8; 5000], 4 * MIB as u64).unwrap();
    file.write_all_at(&[9; 1000], first.len() as u64 - 1000).unwrap();
    // Deleted there, and so here.
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, hole, 6 * MIB as u64, 2 * MIB as u64).unwrap();
    drop(file);
    let second = std::fs::read(home.path("machine.img")).unwrap();
    assert_ne!(first, second);
    let moved = home.json(&["import", "web", "--again", "machine.img", "--mark", "moved"]);
    let written = moved["written_bytes"].as_u64().unwrap();
    assert!((2 * MIB as u64..2 * MIB as u64 + 40_000).contains(&written), "{moved}");
    assert_eq!(restored(home, "moved"), second);
    assert_eq!(restored(home, "same"), first);
    assert_eq!(restored(home, "before:moved"), second);
    let log = home.run(&["log", "web"]).out;
    assert!(log.contains("moved"), "{log}");
}

/// A migration ends in a marker that somebody boots from: it must not stand on half of another disk, and a word that
/// cannot be a name must not cost the volume its state.
#[test]
fn what_cannot_end_well_is_refused_before_anything_is_written() {
    let home = Home::new();
    source(&home);
    home.json(&["create", "web", "--from", "machine.img"]);
    let tip = || home.json(&["status", "web"])["volumes"][0]["tip"]["lsn"].clone();
    let before = tip();
    std::fs::write(home.path("zeros.img"), vec![0; 9 * MIB + 1536]).unwrap();
    let refused = home.run(&["import", "web", "--again", "zeros.img", "--mark", "latest"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    std::fs::write(home.path("short.img"), vec![7; 4 * MIB]).unwrap();
    let refused = home.run(&["import", "web", "--again", "short.img", "--mark", "short"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("beyond") && refused.err.contains("cdp create"), "{refused:?}");
    assert_eq!(tip(), before, "nothing was written");
    // A volume that is larger than its source all along: behind its end there is nothing that could be another disk's.
    home.json(&["create", "roomy", "--from", "short.img", "--size", "16M"]);
    std::fs::write(home.path("short.img"), vec![8; 4 * MIB]).unwrap();
    assert_eq!(home.json(&["import", "roomy", "--again", "short.img"])["written_bytes"], 4 * MIB);
}

#[test]
fn two_passes_without_a_server() {
    two_passes(&Home::new());
}

#[test]
fn two_passes_with_a_server_and_its_clients() {
    let home = Home::new();
    let served = home.serve(&[]);
    two_passes(&home);
    let client = served.connect("web").unwrap();
    let busy = home.run(&["import", "web", "--again", "machine.img"]);
    assert_eq!(busy.code, 4, "{busy:?}");
    drop(client);
    let larger = home.path("larger.img");
    std::fs::File::create(&larger).unwrap().set_len(64 << 20).unwrap();
    let refused = home.run(&["import", "web", "--again", "larger.img"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("cdp grow web"), "{refused:?}");
    served.stop();
}
