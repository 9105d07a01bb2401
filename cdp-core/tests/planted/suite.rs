//! The crash suite in small: one workload at every boundary, one failed sync, one rotten payload, one lost file.

use cdp_core::device::Device;
use cdp_core::ids::BLOCK_BYTES;
use cdp_core::io::sim::{Fault, FaultKind, PowerLoss, SimClock, SimDisk, When};
use cdp_core::volume::Health;

use crate::harness::model::Edit;
use crate::harness::rig;
use crate::harness::workload::{Step, content};
use crate::harness::wrap::Wrap;
use crate::harness::{Outcome, Rig, Tally, Workload, crash_at_every_boundary};

/// A random workload, crashed at every boundary.
pub fn boundaries(wrap: &Wrap) -> Outcome {
    let mut rig = Rig::with(11, 1, &rig::options(64 << 10), wrap.clone())?;
    let mut workload = Workload::new(11, 1, rig::VOLUME_BYTES);
    rig.disk.record_boundaries(true);
    for _ in 0..40 {
        let step = workload.step();
        rig.step(&step)?;
    }
    crash_at_every_boundary(&rig, 11, 2, &mut Tally::default())
}

/// One block, one flush, several times.
fn written(wrap: &Wrap) -> Outcome<Rig> {
    let mut rig = Rig::with(12, 1, &rig::options(64 << 10), wrap.clone())?;
    for number in 0..20 {
        write(&mut rig, number)?;
    }
    rig.step(&Step::Advance { ns: 1_100_000_000 })?;
    rig.step(&Step::Maintain)?;
    Ok(rig)
}

fn write(rig: &mut Rig, number: u64) -> Outcome {
    let data = content(number + 1, BLOCK_BYTES as usize);
    let edits = vec![Edit::Write { offset: number * BLOCK_BYTES, data }];
    rig.step(&Step::Apply { volume: 0, edits, fua: true })
}

/// What was flushed is there after the crash, or the volume says that it is not.
fn nothing_lost_in_silence(rig: &Rig, disk: &SimDisk) -> Outcome {
    let store = rig::open(disk, &SimClock::new(2), &rig.wrap)?;
    let volume = store.volume("v0").map_err(|error| format!("{error:?}"))?;
    let (tip, flushed) = (volume.tip_lsn(), rig.models[0].tip());
    let silent = volume.health() == Health::Good && tip < flushed;
    ensure!(!silent, "LOST: {tip:?} is the newest, {flushed:?} was flushed; {:?}", volume.notes());
    Ok(())
}

/// A sync fails; the flush that is answered later, if one is, must hold.
pub fn failed_sync(wrap: &Wrap) -> Outcome {
    let mut rig = written(wrap)?;
    let edit = Edit::Write { offset: 0, data: vec![9; 4096] };
    rig.step(&Step::Apply { volume: 0, edits: vec![edit], fua: false })?;
    rig.disk.inject(Fault::new(FaultKind::SyncError, When::Nth(1)).on(".seg"));
    let _first = rig.volumes[0].flush();
    if rig.volumes[0].flush().is_err() {
        return Ok(());
    }
    let disk = rig.disk.crash_power_with(PowerLoss::all_lost());
    nothing_lost_in_silence(&rig, &disk)
}

/// A payload rots that was durable: its record and all behind it stay.
pub fn rot(wrap: &Wrap) -> Outcome {
    let rig = written(wrap)?;
    let disk = rig.disk.crash_process();
    let data = content(15, BLOCK_BYTES as usize);
    for path in disk.paths().iter().filter(|path| path.ends_with(".seg")) {
        let bytes = disk.contents(path).map_err(|error| error.to_string())?;
        let found = bytes.chunks(BLOCK_BYTES as usize).position(|block| block[..64] == data[..64]);
        if let Some(block) = found {
            disk.rot(path, block as u64 * BLOCK_BYTES + 5, 1).map_err(|error| error.to_string())?;
        }
    }
    nothing_lost_in_silence(&rig, &disk)
}

/// The newest segment with records is gone.
pub fn missing_segment(wrap: &Wrap) -> Outcome {
    let rig = written(wrap)?;
    let disk = rig.disk.crash_process();
    let used = |path: &&String| {
        path.ends_with(".seg") && disk.contents(path).is_ok_and(|bytes| bytes.starts_with(b"CDPSEGMT"))
    };
    let paths = disk.paths();
    let newest = paths.iter().rfind(used).ok_or("no segment")?;
    disk.disappear(newest).map_err(|error| error.to_string())?;
    nothing_lost_in_silence(&rig, &disk)
}
