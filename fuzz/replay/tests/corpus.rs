//! Inputs that taught us something must never break anything again: every file of every corpus is run, and
//! every prefix of it and a few changed copies, which is where parsers usually give in.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cdp_fuzz_replay::TARGETS;

/// Prefixes are tried in steps when an input is longer than this.
const PREFIXES_MAX: usize = 64;

#[test]
fn every_corpus_replays() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (target, run) in TARGETS {
        let dir = corpora.join(target);
        let mut paths: Vec<_> = fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
            .flatten()
            .collect();
        paths.sort_by_key(|entry| entry.path());
        assert!(!paths.is_empty(), "the corpus of {target} is empty");
        for entry in paths {
            let path = entry.path();
            let input = fs::read(&path).unwrap();
            let attempt = |data: &[u8], how: &str| {
                if catch_unwind(AssertUnwindSafe(|| run(data))).is_err() {
                    panic!("{target} breaks on {} {how}", path.display());
                }
            };
            attempt(&input, "as it is");
            for len in (0..input.len()).step_by(input.len() / PREFIXES_MAX + 1) {
                attempt(&input[..len], &format!("cut to {len} bytes"));
                let mut changed = input.clone();
                for bits in [0x01, 0x80, 0xff] {
                    changed[len] = input[len] ^ bits;
                    attempt(&changed, &format!("with byte {len} ^ {bits:#x}"));
                }
            }
        }
    }
}

#[test]
fn every_target_can_be_built_by_cargo_fuzz() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (target, _) in TARGETS {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
            "{target} is not in fuzz/Cargo.toml"
        );
        assert!(fuzz.join(format!("fuzz_targets/{target}.rs")).exists());
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len(), "a target is never replayed");
}
