//! Random workloads: what clients and the store's own timers do to a few volumes.

use cdp_core::ids::BLOCK_BYTES;
use cdp_core::io::sim::Chance;

use super::model::Edit;

/// Writes go to the first and the last blocks only, so that they meet.
const FRONT_BLOCKS: u64 = 24;
const BACK_BLOCKS: u64 = 3;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    Apply {
        volume: usize,
        edits: Vec<Edit>,
        fua: bool,
    },
    Flush {
        volume: usize,
    },
    Mark {
        volume: usize,
    },
    MarkGroup,
    /// To the record that `pick` falls on.
    Rollback {
        volume: usize,
        pick: u64,
    },
    /// If there was a rollback.
    Undo {
        volume: usize,
    },
    /// By so many blocks, up to a bound.
    Grow {
        volume: usize,
        blocks: u64,
    },
    /// A write that ends with the volume.
    WriteEnd {
        volume: usize,
        data: Vec<u8>,
    },
    Session {
        volume: usize,
    },
    Tick,
    Maintain,
    Advance {
        ns: u64,
    },
    TurnWall {
        ns: i64,
    },
    Close,
    Die,
}

/// Draws steps.
pub struct Workload {
    chance: Chance,
    volumes: usize,
    volume_bytes: u64,
    written: u64,
    turns: bool,
}

impl Workload {
    pub fn new(seed: u64, volumes: usize, volume_bytes: u64) -> Workload {
        Workload {
            chance: Chance::new(seed ^ 0x0077),
            volumes,
            volume_bytes,
            written: seed << 20,
            turns: false,
        }
    }

    /// One with rollbacks, undos and growth among the rest.
    pub fn turning(seed: u64, volumes: usize, volume_bytes: u64) -> Workload {
        Workload { turns: true, ..Workload::new(seed, volumes, volume_bytes) }
    }

    fn turn(&mut self, volume: usize) -> Step {
        match self.chance.below(10) {
            0..4 => Step::Rollback { volume, pick: self.chance.bits() },
            4..7 => Step::Undo { volume },
            7..8 => Step::Grow { volume, blocks: 1 + self.chance.below(5) },
            _ => {
                self.written += 1;
                let len = 1 + self.chance.below(3 * BLOCK_BYTES) as usize;
                Step::WriteEnd { volume, data: content(self.written, len) }
            }
        }
    }

    /// The next thing to happen.
    pub fn step(&mut self) -> Step {
        let volume = self.chance.below(self.volumes as u64) as usize;
        if self.turns && self.chance.percent(12) {
            return self.turn(volume);
        }
        match self.chance.below(100) {
            0..62 => {
                let count = if self.chance.percent(75) { 1 } else { 2 + self.chance.below(5) };
                let edits = (0..count).map(|_| self.edit()).collect();
                Step::Apply { volume, edits, fua: self.chance.percent(15) }
            }
            62..72 => Step::Flush { volume },
            72..76 => Step::Mark { volume },
            76..77 => Step::MarkGroup,
            77..79 => Step::Session { volume },
            79..85 => Step::Tick,
            85..91 => Step::Maintain,
            91..95 => Step::Advance { ns: 1 + self.chance.below(1_500_000_000) },
            95..97 => Step::TurnWall { ns: self.chance.below(8_000_000_000) as i64 - 4_000_000_000 },
            97..98 => Step::Die,
            98..99 => Step::Close,
            _ => Step::Advance { ns: 10_000_000 },
        }
    }

    /// A change of any kind and alignment.
    pub fn edit(&mut self) -> Edit {
        let aligned = self.chance.percent(60);
        let (mut offset, mut len) = self.range();
        if aligned {
            offset = offset / BLOCK_BYTES * BLOCK_BYTES;
            len = len.next_multiple_of(BLOCK_BYTES).min(self.volume_bytes - offset);
        }
        match self.chance.below(100) {
            0..78 => {
                self.written += 1;
                Edit::Write { offset, data: content(self.written, len as usize) }
            }
            78..82 => Edit::Write { offset, data: vec![0; len as usize] },
            82..90 => Edit::Zero { offset, len, hole: self.chance.percent(50) },
            90..92 => Edit::Trim { offset: 0, len: self.volume_bytes },
            _ => Edit::Trim { offset, len: (len * 3).min(self.volume_bytes - offset) },
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let len = match self.chance.below(10) {
            0..3 => 1 + self.chance.below(700),
            3..8 => 1 + self.chance.below(9000),
            _ => 1 + self.chance.below(20_000),
        };
        let offset = if self.chance.percent(90) {
            self.chance.below(FRONT_BLOCKS * BLOCK_BYTES)
        } else {
            self.volume_bytes - 1 - self.chance.below(BACK_BLOCKS * BLOCK_BYTES)
        };
        (offset, len.min(self.volume_bytes - offset))
    }
}

/// Bytes that no other write has.
pub fn content(number: u64, len: usize) -> Vec<u8> {
    let mut chance = Chance::new(number);
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        data.extend_from_slice(&(chance.bits() | 1).to_le_bytes());
    }
    data.truncate(len);
    data
}
