//! The naive model: a list of records, and for each the whole disk after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use cdp_core::device::Change;
use cdp_core::history::point::Timeline;
use cdp_core::ids::*;
use cdp_core::volume::Volume;

use super::Outcome;
use crate::ensure;

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A change that owns its bytes.
#[derive(Clone, Debug)]
pub enum Edit {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64, hole: bool },
    Trim { offset: u64, len: u64 },
}

impl Edit {
    pub fn change(&self) -> Change<'_> {
        match self {
            Edit::Write { offset, data } => Change::Write { offset: *offset, data },
            Edit::Zero { offset, len, hole } => Change::Zero { offset: *offset, len: *len, hole: *hole },
            Edit::Trim { offset, len } => Change::Trim { offset: *offset, len: *len },
        }
    }
}

/// The content of a disk. Blocks that never changed are zeros.
#[derive(Clone, PartialEq)]
pub struct State {
    pub bytes: u64,
    blocks: Vec<Option<Arc<[u8]>>>,
}

impl State {
    pub fn zeros(bytes: u64) -> State {
        State { bytes, blocks: vec![None; bytes.div_ceil(BLOCK_BYTES) as usize] }
    }

    pub fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Write { offset, data } => self.put(*offset, data.len() as u64, Some(data)),
            Edit::Zero { offset, len, .. } | Edit::Trim { offset, len } => self.put(*offset, *len, None),
        }
    }

    fn put(&mut self, offset: u64, len: u64, data: Option<&[u8]>) {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let inside = (at % BLOCK_BYTES) as usize;
            let step = (len - done).min((BLOCK - inside) as u64) as usize;
            let slot = &mut self.blocks[(at / BLOCK_BYTES) as usize];
            let mut block = slot.as_ref().map_or_else(|| vec![0; BLOCK], |block| block.to_vec());
            match data {
                Some(data) => {
                    block[inside..inside + step].copy_from_slice(&data[done as usize..done as usize + step]);
                }
                None => block[inside..inside + step].fill(0),
            }
            *slot = Some(block.into());
            done += step as u64;
        }
    }

    /// Whether these are the bytes of a block.
    pub fn block_is(&self, lba: usize, bytes: &[u8]) -> bool {
        match &self.blocks[lba] {
            Some(block) => block[..bytes.len()] == *bytes,
            None => *bytes == ZEROS[..bytes.len()],
        }
    }

    /// The bytes of a block; `None` for zeros, also behind the end.
    fn block(&self, lba: usize) -> Option<&[u8]> {
        let block = self.blocks.get(lba)?.as_deref()?;
        if block == ZEROS { None } else { Some(block) }
    }

    /// The blocks whose bytes are not those of another disk's; behind an end are zeros.
    pub fn differing(&self, other: &State) -> BTreeSet<u64> {
        let blocks = self.blocks.len().max(other.blocks.len());
        (0..blocks).filter(|lba| self.block(*lba) != other.block(*lba)).map(|lba| lba as u64).collect()
    }

    /// The first block that differs from these bytes, which begin at block `first`.
    pub fn differs(&self, first: usize, bytes: &[u8]) -> Option<usize> {
        (first..)
            .zip(bytes.chunks(BLOCK))
            .find(|(lba, block)| !self.block_is(*lba, block))
            .map(|(lba, _)| lba)
    }
}

/// One record: the disk after it, when it was, and its name if it is a named marker.
#[derive(Clone)]
pub struct Record {
    pub state: Arc<State>,
    pub at: Timestamp,
    pub name: Option<String>,
}

/// Everything that was done to one volume, by LSN; LSN 0 is its creation.
#[derive(Clone)]
pub struct Model {
    pub records: Vec<Record>,
    rollbacks: Vec<Lsn>,
}

impl Model {
    pub fn of(volume: &Volume) -> Model {
        let identity = volume.identity();
        let state = Arc::new(State::zeros(identity.first_size_bytes));
        Model { records: vec![Record { state, at: identity.created, name: None }], rollbacks: Vec::new() }
    }

    /// Of a clone that begins as this disk.
    pub fn beginning(volume: &Volume, state: &State) -> Model {
        let record = Record { state: Arc::new(state.clone()), at: volume.identity().created, name: None };
        Model { records: vec![record], rollbacks: Vec::new() }
    }

    pub fn tip(&self) -> Lsn {
        Lsn(self.records.len() as u64 - 1)
    }

    pub fn state(&self, lsn: Lsn) -> &State {
        &self.records[lsn.0 as usize].state
    }

    /// An acknowledged change. LSNs between the tip and it are the store's own records.
    pub fn push(&mut self, lsn: Lsn, edit: &Edit) -> Outcome {
        ensure!(lsn > self.tip(), "{lsn:?} was given twice: the tip is {:?}", self.tip());
        self.extend(lsn.previous());
        let mut state = State::clone(self.state(self.tip()));
        state.apply(edit);
        self.records.push(Record { state: Arc::new(state), at: Timestamp(0), name: None });
        Ok(())
    }

    /// Records up to `tip` that change no block.
    fn extend(&mut self, tip: Lsn) {
        while self.tip() < tip {
            let state = self.records[self.tip().0 as usize].state.clone();
            self.records.push(Record { state, at: Timestamp(0), name: None });
        }
    }

    /// A rollback: its marker is the record before it, and the state that of an older record, size included.
    pub fn roll_back(&mut self, lsn: Lsn, to: Lsn, marker: &str) {
        self.name(lsn.previous(), marker);
        let state = self.records[to.0 as usize].state.clone();
        self.records.push(Record { state, at: Timestamp(0), name: None });
        self.rollbacks.push(lsn);
    }

    /// How many rollbacks there were.
    pub fn turns(&self) -> usize {
        self.rollbacks.len()
    }

    /// The newest rollback.
    pub fn rolled_back(&self) -> Option<Lsn> {
        self.rollbacks.last().copied()
    }

    pub fn grow(&mut self, lsn: Lsn, bytes: u64) {
        self.extend(lsn.previous());
        let mut state = State::clone(self.state(self.tip()));
        state.bytes = bytes;
        state.blocks.resize(bytes.div_ceil(BLOCK_BYTES) as usize, None);
        self.records.push(Record { state: Arc::new(state), at: Timestamp(0), name: None });
    }

    pub fn name(&mut self, lsn: Lsn, name: &str) {
        self.extend(lsn);
        self.records[lsn.0 as usize].name = Some(name.to_owned());
    }

    /// The newest marker of this name is let go.
    pub fn unname(&mut self, name: &str) -> Option<Lsn> {
        let at = self.records.iter().rposition(|record| record.name.as_deref() == Some(name))?;
        self.records[at].name = None;
        Some(Lsn(at as u64))
    }

    /// Takes over what the volume did by itself, and the timestamps it gave; these must rise.
    pub fn settle(&mut self, volume: &Volume) -> Outcome {
        let tip = volume.tip_lsn();
        ensure!(tip >= self.tip(), "the tip is {tip:?}, though {:?} was acknowledged", self.tip());
        self.extend(tip);
        let mut from = self.records.len();
        while from > 1 && self.records[from - 1].at == Timestamp(0) {
            from -= 1;
        }
        for lsn in from..self.records.len() {
            let before = self.records[lsn - 1].at;
            if !volume.keeps(Lsn(lsn as u64)) {
                // Thinned away in the moment it was written: nobody will ask when that was.
                self.records[lsn].at = Timestamp(before.0 + 1);
                continue;
            }
            let at = volume.timestamp_of(Lsn(lsn as u64)).map_err(|error| format!("{error}"))?;
            ensure!(at > before, "timestamps do not rise: lsn {lsn} at {at:?}, the one before at {before:?}");
            self.records[lsn].at = at;
        }
        Ok(())
    }

    /// The same up to this record.
    pub fn cut(&self, tip: Lsn) -> Model {
        Model {
            records: self.records[..=tip.0 as usize].to_vec(),
            rollbacks: self.rollbacks.iter().copied().filter(|lsn| *lsn <= tip).collect(),
        }
    }

    /// As it is where a rollback that was under way at `lsn` was done again at the opening: it stands at `at`, and the
    /// state is that of `to`.
    pub fn redone(&self, lsn: Lsn, at: Lsn, to: Lsn, volume: &Volume) -> Outcome<Model> {
        let mut model = self.cut(lsn);
        for (marker, _) in volume.named_markers().into_iter().filter(|(marker, _)| marker.lsn > lsn) {
            model.name(marker.lsn, &marker.name);
        }
        model.extend(at.previous());
        model.records.push(Record {
            state: self.records[to.0 as usize].state.clone(),
            at: Timestamp(0),
            name: None,
        });
        model.rollbacks.push(at);
        model.settle(volume)?;
        Ok(model)
    }

    /// Named markers, oldest first.
    pub fn names(&self, tip: Lsn) -> Vec<(Lsn, String)> {
        let records = self.records[..=tip.0 as usize].iter().enumerate();
        records.filter_map(|(lsn, record)| Some((Lsn(lsn as u64), record.name.clone()?))).collect()
    }
}
