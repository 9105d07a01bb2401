//! A file of a volume's base is lost or rots, and `cdp verify` calls it good and `cdp restore` gives zeros in its place: on the real
//! binary each must say which file it is, and what stands beside it must go on.

mod cli;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cli::*;

const MIB: usize = 1 << 20;
const PAGE: u64 = 4096;

/// Data in the first and the last third; an end that is no block's.
fn image() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..12 * MIB as u32 + 1536).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    bytes[4 * MIB..8 * MIB].fill(0);
    bytes
}

fn directory(home: &Home) -> PathBuf {
    home.store().join("volumes/vm")
}

fn zero(path: &Path, offset: u64, len: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; len], offset).unwrap();
}

fn cut(path: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// What happens to which file, where in the volume it is felt, and where it is not. Each is felt somewhere else: what was written
/// there is the journal's from then on.
struct Case {
    file: &'static str,
    damage: fn(&Path),
    felt: usize,
    whole: Option<usize>,
    // Known without reading: `status` says it.
    is_told: bool,
}

#[test]
fn what_is_lost_of_the_base_is_never_zeros() {
    let cases = [
        Case {
            file: "base.0000",
            damage: |path| std::fs::remove_file(path).unwrap(),
            felt: MIB,
            whole: Some(5 * MIB),
            is_told: true,
        },
        Case {
            file: "base.0000.sums",
            damage: |path| std::fs::remove_file(path).unwrap(),
            felt: 2 * MIB,
            whole: Some(5 * MIB),
            is_told: true,
        },
        Case {
            file: "base.map",
            damage: |path| std::fs::remove_file(path).unwrap(),
            felt: 3 * MIB,
            whole: None,
            is_told: true,
        },
        // The page of the first 4 MiB.
        Case {
            file: "base.0000.sums",
            damage: |path| zero(path, PAGE, PAGE as usize),
            felt: MIB + (64 << 10),
            whole: Some(9 * MIB),
            is_told: false,
        },
        Case {
            file: "base.0000.sums",
            damage: |path| cut(path, PAGE),
            felt: 9 * MIB,
            whole: Some(5 * MIB),
            is_told: false,
        },
        Case {
            file: "base.0000",
            damage: |path| cut(path, 0),
            felt: 10 * MIB,
            whole: Some(5 * MIB),
            is_told: false,
        },
    ];
    let home = Home::new();
    let bytes = image();
    std::fs::write(home.path("vm.img"), &bytes).unwrap();
    home.json(&["create", "vm", "--from", "vm.img"]);
    let good = home.run(&["verify", "vm"]);
    assert_eq!(good.code, 0, "{good:?}");
    for Case { file, damage, felt, whole, is_told } in cases {
        let path = directory(&home).join(file);
        let saved = std::fs::read(&path).unwrap();
        damage(&path);
        let verified = home.run(&["verify", "vm"]);
        assert_ne!(verified.code, 0, "{file}: {verified:?}");
        // A block that does not fit its checksum is named as the image's: nobody can tell which of the two it is.
        let named = if is_told { file } else { "base.0000" };
        assert!(verified.out.contains("DAMAGED") && verified.out.contains(named), "{file}: {verified:?}");
        let restored = home.run(&["restore", "vm@latest", "out.img", "--force"]);
        assert_ne!(restored.code, 0, "{file}: {restored:?}");

        let served = home.serve(&[]);
        let mut client = served.connect("vm").unwrap();
        assert!(get(&mut client, felt as u64, PAGE as usize).is_err(), "{file}");
        if let Some(at) = whole {
            let read = get(&mut client, at as u64, PAGE as usize).unwrap();
            assert!(read == bytes[at..at + PAGE as usize], "{file}");
        }
        // What is written now is the journal's.
        put(&mut client, felt as u64, &[0x5a; 4096]).unwrap();
        assert_eq!(get(&mut client, felt as u64, PAGE as usize).unwrap(), [0x5a; 4096], "{file}");
        put(&mut client, felt as u64, &bytes[felt..felt + PAGE as usize]).unwrap();
        drop(client);
        let status = home.run(&["status"]);
        let told = status.out.contains(file) && status.out.contains("ACT");
        assert_eq!(told, is_told, "{file}: {status:?}");
        served.stop();

        std::fs::write(&path, &saved).unwrap();
        let again = home.run(&["verify", "vm"]);
        assert_eq!(again.code, 0, "{file}: brought back: {again:?}");
    }
    let restored = home.run(&["restore", "vm@latest", "out.img", "--force"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(std::fs::read(home.path("out.img")).unwrap()[..bytes.len()] == bytes);
}
