//! Files that an accepted loss leaves behind: kept, in a directory of their own.

use std::path::Path;

use super::super::Shared;
use crate::error::{IoContext, Result};
use crate::ids::*;
use crate::io::Files;
use crate::journal::recover::Recovered;
use crate::journal::segment::Segment;

const COPY_STEP_BYTES: u64 = 64 << 10;

/// After an accepted loss: files that hold nothing of the stream any more are kept, in a directory of their
/// own. (After a crash they are removed: what counted in them stands in the fresh segment.)
pub(super) fn keep_aside(
    shared: &Shared,
    dir: &Path,
    recovered: &Recovered,
    incarnation: Incarnation,
) -> Result<()> {
    let files = &*shared.files;
    let aside = dir.join(format!("lost-{incarnation}"));
    let moved = files.create_dir(&aside).and_then(|()| files.sync_dir(dir)).and_then(|()| {
        // What follows the cut in the last segment that stays will go one day: keep a copy of that file.
        if let Some(last) = recovered.stream.last() {
            let path = &last.segment.path;
            copy_file(files, &last.segment, &aside.join(path.file_name().unwrap_or_default()))?;
        }
        for path in &recovered.dead {
            files.rename(path, &aside.join(path.file_name().unwrap_or_default()))?;
        }
        files.sync_dir(&aside)?;
        files.sync_dir(dir)
    });
    moved.at(|| format!("keeping old files in {}", aside.display()))
}

fn copy_file(files: &dyn Files, segment: &Segment, to: &Path) -> std::io::Result<()> {
    let copy = files.create(to)?;
    let bytes = segment.file.len()?;
    let mut buffer = vec![0; COPY_STEP_BYTES as usize];
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(COPY_STEP_BYTES) as usize;
        // What cannot be read stays a hole in the copy.
        if segment.file.read_at(at, &mut buffer[..step]).is_ok() {
            copy.write_at(at, &[std::io::IoSlice::new(&buffer[..step])])?;
        }
        at += step as u64;
    }
    copy.sync()
}
