//! What a volume has to show, told by somebody naive: the whole content after each of its records.

use std::rc::Rc;

use cdp_core::ids::{Lsn, Timestamp};

/// Clients write to so many blocks at the front.
pub const BLOCKS: u64 = 24;
pub const SECTOR: u64 = 512;
pub const SECTORS: u64 = BLOCKS * 8;

/// The state after one record.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The same wherever the record is; later records have higher ones, whichever volume or site they began at.
    pub id: u64,
    /// What each sector is filled with.
    pub sectors: Rc<[u32]>,
    /// The volume's size in bytes.
    pub size: u64,
    /// It shows no state: it is one of those that make the state of `gap` whole.
    pub hidden: bool,
    /// Here the state is whole with which somebody went on whose history of it was not there.
    pub gap: Option<Gap>,
}

/// What is not known of the time before a state with which somebody went on.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// Up to then it is.
    pub complete: Timestamp,
    /// From then on, too: it is the instant of that state.
    pub at: Timestamp,
    /// Its record at the site that it came from.
    pub id: u64,
}

impl Entry {
    /// The record that made this state what it is.
    pub fn written(&self) -> u64 {
        self.gap.map_or(self.id, |gap| gap.id)
    }

    /// The same state after another record.
    pub fn again(&self, id: u64) -> Entry {
        Entry { id, gap: None, ..self.clone() }
    }
}

/// All states of one copy of a volume; the place is the LSN.
#[derive(Clone, Debug)]
pub struct Log(Vec<Entry>);

impl Log {
    /// A volume of this size, filled with zeros.
    pub fn new(size: u64) -> Log {
        let sectors = vec![0; SECTORS as usize].into();
        Log(vec![Entry { id: 0, sectors, size, hidden: false, gap: None }])
    }

    pub fn tip(&self) -> Lsn {
        Lsn(self.0.len() as u64 - 1)
    }

    pub fn newest(&self) -> &Entry {
        &self.0[self.0.len() - 1]
    }

    pub fn at(&self, lsn: Lsn) -> &Entry {
        &self.0[lsn.0 as usize]
    }

    pub fn get(&self, lsn: Lsn) -> Option<&Entry> {
        self.0.get(lsn.0 as usize)
    }

    /// The states with which somebody went on whose history of them was not there; each with the newest state before it.
    pub fn gaps(&self) -> impl Iterator<Item = (Lsn, Lsn, Gap)> {
        let at = |place: usize| Lsn(place as u64);
        self.0.iter().enumerate().filter_map(move |(place, entry)| {
            let gap = entry.gap?;
            let behind = self.0[..place].iter().rposition(|entry| !entry.hidden).expect("the first is not");
            Some((at(behind), at(place), gap))
        })
    }

    pub fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub fn cut(&mut self, lsn: Lsn) {
        self.0.truncate(lsn.0 as usize + 1);
    }

    /// The last record that both have.
    pub fn common(&self, other: &Log) -> Lsn {
        let same = self.0.iter().zip(&other.0).take_while(|(ours, theirs)| ours.id == theirs.id).count();
        Lsn(same as u64 - 1)
    }

    /// Whether the other has all of it.
    pub fn is_prefix_of(&self, other: &Log) -> bool {
        self.common(other) == self.tip()
    }

    /// Takes over what another copy has beyond this one.
    pub fn follow(&mut self, other: &Log, through: Lsn) {
        let from = self.0.len();
        self.0.extend_from_slice(&other.0[from..=through.0 as usize]);
    }
}

/// A client's change, on whole sectors.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    Write { sector: u64, count: u64, stamp: u32 },
    Zero { sector: u64, count: u64 },
    Trim { sector: u64, count: u64 },
}

impl Edit {
    /// What becomes of a state.
    pub fn apply(&self, before: &[u32]) -> Rc<[u32]> {
        let (sector, count, stamp) = match *self {
            Edit::Write { sector, count, stamp } => (sector, count, stamp),
            Edit::Zero { sector, count } | Edit::Trim { sector, count } => (sector, count, 0),
        };
        let mut after = before.to_vec();
        after[sector as usize..(sector + count) as usize].fill(stamp);
        after.into()
    }
}

/// The bytes of sectors that are filled with their stamps.
pub fn bytes_of(stamps: impl Iterator<Item = u32>) -> Vec<u8> {
    stamps.flat_map(|stamp| std::iter::repeat_n(stamp.to_le_bytes(), SECTOR as usize / 4)).flatten().collect()
}
