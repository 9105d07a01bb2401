//! An image larger than a piece was taken over, and blocks beside the seam between two pieces, or beside holes, read as others.

use std::path::Path;
use std::sync::Arc;

use cdp_core::base::{Base, BaseWriter};
use cdp_core::ids::{BLOCK_BYTES, VolumeId};
use cdp_core::io::Files;
use cdp_core::io::sim::{Chance, SimDisk};
use cdp_core::limits::BASE_PIECE_BYTES;

#[test]
fn what_is_written_in_any_portions_is_read() {
    let seam = BASE_PIECE_BYTES / BLOCK_BYTES;
    for seed in 0..40 {
        let mut chance = Chance::new(seed);
        let files: Arc<dyn Files> = Arc::new(SimDisk::new(seed));
        let (dir, volume) = (Path::new("/volume"), VolumeId(7));
        files.create_dir(dir).unwrap();
        let size_bytes = BASE_PIECE_BYTES + 64 * BLOCK_BYTES;
        let mut writer = BaseWriter::new(files.clone(), dir, volume, size_bytes);
        // Blocks around the seam; runs of data and of zeros, written in portions of any length.
        let first = seam - 40;
        let mut blocks = Vec::new();
        let mut is_data = false;
        for number in 0..90u64 {
            is_data ^= chance.percent(30);
            let byte = if is_data { 1 + (number % 200) as u8 } else { 0 };
            blocks.extend(vec![byte; BLOCK_BYTES as usize]);
        }
        let mut at = 0;
        while at < 90 {
            let portion = (1 + chance.below(20)).min(90 - at);
            let bytes = &blocks[(at * BLOCK_BYTES) as usize..][..(portion * BLOCK_BYTES) as usize];
            writer.write(first + at, bytes).unwrap();
            at += portion;
        }
        writer.finish().unwrap();
        let base = Base::open(&files, dir, volume, size_bytes).unwrap();
        let mut read = vec![0xee; blocks.len()];
        base.read(first, &mut read).unwrap();
        assert!(read == blocks, "seed {seed}");
        // What is zeros is not there.
        for number in 0..90u64 {
            let (_, present) = base.stretch(first + number, first + number + 1).unwrap();
            assert_eq!(present, blocks[(number * BLOCK_BYTES) as usize] != 0, "seed {seed}, block {number}");
        }
    }
}
