//! Teaching the catalog what the volume knows: a bounded number of names at a time, so that a catalog that was deleted is learnt
//! again in little memory and beside the clients.
//!
//! Legal states after a crash, at any moment: the catalog is complete through the end of one sealed segment, and the names behind
//! that are read from the journal and taught from there; or it knows nothing of the volume, and is taught from the beginning.

use super::Volume;
use super::parts::Part;
use crate::catalog::Complete;
use crate::limits::LESSON_NAMES_MAX;

/// The end of a sealed part, as the catalog names it.
pub(super) fn complete_through(part: &Part) -> Option<Complete> {
    let frozen = part.frozen.get()?;
    frozen.seal_hash?;
    Some(Complete { segment: part.segment.header.id, lsn: frozen.last.lsn, chain: frozen.last.chain })
}

impl Volume {
    /// Brings the catalog nearer to the newest sealed segment.
    pub(super) fn teach_catalog(&self) {
        let parts = self.parts.list();
        let Some(newest) = parts.iter().rev().find_map(|part| complete_through(part)) else { return };
        let names = || self.names.lock().expect("no panics under this lock");
        if names().is_taught(newest) {
            return;
        }
        // What the catalog is complete through is not looked for in the journal any more.
        if let Err(error) = self.keep_epochs() {
            return self.note_error(format!("the epochs cannot be written: {error}"));
        }
        let (catalog, volume) = (&self.shared.catalog, self.identity.id);
        if names().taught().is_none_or(|taught| taught.lsn > newest.lsn) {
            names().set_taught(None);
            catalog.forget(volume);
        }
        let gone = names().take_gone(LESSON_NAMES_MAX);
        if !gone.is_empty() {
            catalog.forget_names(volume, &gone);
        }
        let (complete, lesson) = {
            let mut names = names();
            let behind = names.taught().map(|taught| taught.lsn);
            let mut complete = None;
            for end in parts.iter().filter_map(|part| complete_through(part)) {
                if behind.is_some_and(|behind| end.lsn < behind) {
                    continue;
                }
                let count = names.count_between(behind.unwrap_or_default(), end.lsn);
                if complete.is_some() && count > LESSON_NAMES_MAX {
                    break;
                }
                complete = Some(end);
            }
            let Some(complete) = complete else { return };
            (complete, names.lesson(complete))
        };
        let turns = self.course.read().expect("no panics under this lock").turns().to_vec();
        catalog.learn(volume, complete, &lesson, &turns);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::catalog::Catalog;
    use crate::generate::{HistoryOptions, history};
    use crate::io::{SystemClock, native};
    use crate::store::{OpenOptions, Store};

    const MARKERS: u64 = 3 * LESSON_NAMES_MAX as u64 + 500;

    fn open(path: &Path) -> (Store, Arc<Volume>) {
        let options = OpenOptions { holder: "a test", catalog: &Catalog::open, ..OpenOptions::default() };
        let store = Store::open_with(native(false), Arc::new(SystemClock), path, &options).unwrap();
        let volume = store.volume("disk").unwrap();
        (store, volume)
    }

    fn known(volume: &Volume) -> u64 {
        volume.shared.catalog.known(volume.identity.id).map_or(0, |known| known.names)
    }

    // Half a million markers kept somebody waiting for a minute at an opening that had lost its catalog, and took 1.5 GiB.
    #[test]
    fn a_lost_catalog_is_learnt_again_a_bounded_number_of_names_at_a_time_and_goes_on_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let options = HistoryOptions {
            changes: MARKERS,
            size_bytes: 1 << 30,
            segment_bytes: 4 << 20,
            seed: 7,
            duration_ns: 3_600_000_000_000,
            marker_every: 1,
        };
        history(native(false), &path, &options, &mut |_| {}).unwrap();
        let (mut store, mut volume) = open(&path);
        let names = volume.named_markers();
        assert_eq!(names.len() as u64, MARKERS);
        let in_one_segment =
            volume.part_list().iter().map(|part| part.events().unwrap().len()).max().unwrap();
        assert!(in_one_segment < LESSON_NAMES_MAX, "else this test tells nothing");
        let (mut before, mut lessons) = (known(&volume), 1);
        assert!(before > 0 && before <= LESSON_NAMES_MAX as u64, "{before} names at the opening");
        while before < MARKERS {
            assert!(lessons < 20, "it gets no further than {before} of {MARKERS}");
            if lessons == 2 {
                // The process dies; what was learnt is not learnt again.
                drop((volume, store));
                (store, volume) = open(&path);
                assert_eq!(volume.named_markers(), names);
            } else {
                volume.maintain().unwrap();
            }
            let now = known(&volume);
            assert!(now > before && now - before <= LESSON_NAMES_MAX as u64, "{before} to {now} names");
            (before, lessons) = (now, lessons + 1);
        }
        drop((volume, store));
        let (_store, volume) = open(&path);
        assert_eq!((known(&volume), volume.named_markers()), (MARKERS, names));
        assert!(volume.names.lock().unwrap().is_taught(newest_end(&volume)), "nothing is left to learn");
    }

    fn newest_end(volume: &Volume) -> Complete {
        volume.part_list().iter().rev().find_map(|part| complete_through(part)).unwrap()
    }

    // A name that is left behind in its row would come back at the next opening; one that goes with its neighbours would be missing.
    #[test]
    fn the_catalog_forgets_just_the_names_that_went() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path());
        let volume = crate::ids::VolumeId(9);
        let name = |lsn: u64| crate::catalog::CatalogName {
            lsn: crate::ids::Lsn(lsn),
            at: crate::ids::Timestamp(lsn),
            class: 1,
            name: format!("n-{lsn}"),
        };
        let complete = |lsn: u64| Complete {
            segment: crate::ids::SegmentId(lsn),
            lsn: crate::ids::Lsn(lsn),
            chain: crate::format::record::Chain::default(),
        };
        let mut there: Vec<u64> = Vec::new();
        let mut state = 5u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut next = 1;
        for round in 0..60 {
            let new: Vec<u64> = (next..next + random(150)).filter(|lsn| lsn % 3 != 0).collect();
            next += 150;
            there.extend(&new);
            let names: Vec<_> = new.iter().map(|lsn| name(*lsn)).collect();
            catalog.learn(volume, complete(next), &names, &[]);
            let through = random(if round % 5 == 0 { next } else { next / 4 });
            let gone: Vec<u64> = (1..next).filter(|lsn| *lsn < through / 8 || random(40) == 0).collect();
            there.retain(|lsn| !gone.contains(lsn));
            catalog.forget_names(volume, &gone.iter().map(|lsn| crate::ids::Lsn(*lsn)).collect::<Vec<_>>());
            let known = catalog.known(volume).expect("it was taught");
            assert_eq!((known.names, known.complete), (there.len() as u64, complete(next)));
            let mut seen = Vec::new();
            assert_eq!(catalog.names(volume, &known, &mut |name| seen.push(name.clone())), Some(true));
            assert_eq!(seen, there.iter().map(|lsn| name(*lsn)).collect::<Vec<_>>());
        }
        catalog.forget(volume);
        assert_eq!(catalog.known(volume), None);
    }
}
