//! Two sites on simulated disks: one with a volume and a history, one with an old copy of it, and a line between them.

use std::path::Path;
use std::sync::Arc;

use cdp_core::base::BaseWriter;
use cdp_core::device::{Change, Device, Read};
use cdp_core::ids::*;
use cdp_core::io::sim::{Chance, SimClock, SimDisk};
use cdp_core::store::seeds::SeedFrom;
use cdp_core::store::{CreateOptions, OpenOptions, Store};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_replica::fault::Fault;
use cdp_replica::limits::RANGE_BLOCKS;
use cdp_replica::receiver::{Feeding, Receiver};
use cdp_replica::sender::Sender;
use cdp_replica::status::{LinkState, LinkStatus};
use cdp_replica::wire::frame::FRAME_HEADER_BYTES;

pub const NAME: &str = "disk";
const STORE: &str = "/store";
const ADDRESS: &str = "b:1";
/// Five ranges, the second without anything in it, the last one short, and a piece of a block behind it.
pub const RANGES: u64 = 5;
pub const BLOCKS: u64 = (RANGES - 1) * RANGE_BLOCKS + 11;
pub const SIZE_BYTES: u64 = BLOCKS * BLOCK_BYTES + 512;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Between two frames of the sender, too: so long that each may be synced before the next.
const STEP_NS: u64 = 600_000_000;
/// A link that did not come to its end by then hangs.
const TURNS_MAX: u32 = 4000;

pub struct Site {
    pub disk: SimDisk,
    pub clock: SimClock,
    pub store: Option<Arc<Store>>,
}

impl Site {
    pub fn new(seed: u64) -> Site {
        let (disk, clock) = (SimDisk::new(seed), SimClock::new(seed));
        Store::create(&disk, &clock, Path::new(STORE)).unwrap();
        Site::open(disk, clock)
    }

    pub fn open(disk: SimDisk, clock: SimClock) -> Site {
        let options = OpenOptions { holder: "a test", ..OpenOptions::default() };
        let files = Arc::new(disk.clone());
        let store = Store::open_with(files, Arc::new(clock.clone()), Path::new(STORE), &options).unwrap();
        Site { disk, clock, store: Some(Arc::new(store)) }
    }

    pub fn store(&self) -> &Arc<Store> {
        self.store.as_ref().unwrap()
    }

    pub fn volume(&self) -> Arc<Volume> {
        self.store().volume(NAME).unwrap()
    }

    /// The old copy that stepped aside, if one did.
    pub fn aside(&self) -> Option<Arc<Volume>> {
        self.store().volumes().into_iter().find(|volume| volume.name().starts_with("disk-until-"))
    }
}

/// The image that everything began with.
pub fn image(base: &mut BaseWriter, seed: u64) -> cdp_core::error::Result<()> {
    let mut noise = Chance::new(seed);
    (0..=BLOCKS).filter(|block| block / RANGE_BLOCKS != 1 && block % 5 != 4).try_for_each(|block| {
        let bytes = noisy(&mut noise);
        let len = (SIZE_BYTES - block * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
        base.write(block, &[&bytes[..len], &vec![0; bytes.len() - len]].concat())
    })
}

fn noisy(noise: &mut Chance) -> Vec<u8> {
    (0..512).flat_map(|_| noise.bits().to_le_bytes()).collect()
}

/// What may go wrong on the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    Nothing,
    /// The connection is gone when so many frames, of both directions together, have arrived.
    CutAfter(u64),
    /// This bit of this byte of what the sender says arrives otherwise.
    Flip(u64),
}

/// How a connection ended.
#[derive(Debug)]
pub struct Ended {
    pub fault: Option<Fault>,
    /// Frames that arrived, and bytes that were said there and back.
    pub frames: u64,
    pub there: u64,
    pub back: u64,
    /// Where the first acknowledgement of the state began.
    pub resumed_at: u64,
}

pub struct Pair {
    pub a: Site,
    pub b: Site,
    pub feeding: Arc<Feeding>,
    pub now_ns: u64,
    pub codings: u32,
}

impl Pair {
    /// A history that began with an image, and a replica that was copied early and has not been fed since.
    pub fn behind(seed: u64) -> Pair {
        let mut pair = Pair::apart(seed);
        pair.connect(Trouble::Nothing, &mut |_| {});
        write(&pair.a.volume(), 3, b"the replica has seen this");
        assert_eq!(pair.connect(Trouble::Nothing, &mut |_| {}).fault, None);
        pair
    }

    /// The same without a replica.
    pub fn apart(seed: u64) -> Pair {
        let (a, b) = (Site::new(seed), Site::new(seed + 1));
        let options = CreateOptions { segment_bytes: SEGMENT_BYTES, ..CreateOptions::new(SIZE_BYTES) };
        let mut fill = |base: &mut BaseWriter| image(base, seed);
        let volume = a.store().create_volume(NAME, &options, Some(&mut fill)).unwrap();
        volume.add_replica(ADDRESS, 0, false).unwrap();
        Pair { a, b, feeding: Arc::default(), now_ns: 1_000_000_000, codings: u32::MAX }
    }

    /// Some blocks change at the first site, spread over everything; gives how many.
    pub fn change(&self, seed: u64, count: u64) -> u64 {
        let (volume, mut chance) = (self.a.volume(), Chance::new(seed));
        let mut results = Vec::new();
        for _ in 0..count {
            let data = noisy(&mut chance);
            let offset = chance.below(BLOCKS) * BLOCK_BYTES;
            volume.apply(SessionId(1), &[Change::Write { offset, data: &data }], &mut results);
        }
        // What was there and is not any more, a whole range of it too.
        for (offset, len) in [(0, 6 * BLOCK_BYTES), (2 << 20, 1 << 20)] {
            volume.apply(SessionId(1), &[Change::Trim { offset, len }], &mut results);
        }
        assert!(results.iter().all(Result::is_ok));
        volume.flush().unwrap();
        count + 6
    }

    /// Somebody at the second site asks for a reseed.
    pub fn ask(&self, from: Option<SeedFrom>) {
        self.b.store().plan_reseed(NAME, from, None).unwrap();
    }

    /// One connection, until everything is there and acknowledged, or it ends. `look` is called at each turn.
    pub fn connect(&mut self, trouble: Trouble, look: &mut dyn FnMut(&mut Pair)) -> Ended {
        let volume = self.a.volume();
        volume.flush().unwrap();
        // As a link does, of the certificate; both sites go by one name here.
        volume.note_replica_site(ADDRESS, "site-a").unwrap();
        let mut sender = Sender::new(volume.clone(), ADDRESS, self.now_ns);
        sender.restrict_codings(self.codings);
        let mut receiver = Receiver::new(self.b.store().clone(), self.feeding.clone(), "site-a", self.now_ns);
        let mut ended = Ended { fault: None, frames: 0, there: 0, back: 0, resumed_at: 0 };
        let mut is_resumed = false;
        for _ in 0..TURNS_MAX {
            look(self);
            self.now_ns += STEP_NS;
            self.a.clock.advance(STEP_NS);
            self.b.clock.advance(STEP_NS);
            let outcome = (|| {
                sender.poll(self.now_ns)?;
                let mut said = std::mem::take(sender.output());
                if let Trouble::Flip(at) = trouble
                    && (ended.there..ended.there + said.len() as u64).contains(&at)
                {
                    said[(at - ended.there) as usize] ^= 1 << (at % 8);
                }
                ended.there += said.len() as u64;
                let mut take = |frame: &[u8]| {
                    receiver.receive(frame, self.now_ns)?;
                    self.now_ns += STEP_NS;
                    receiver.poll(self.now_ns)
                };
                if deliver(&said, &mut ended.frames, trouble, &mut take)? {
                    return Ok(true);
                }
                receiver.poll(self.now_ns)?;
                let said = std::mem::take(receiver.output());
                ended.back += said.len() as u64;
                deliver(&said, &mut ended.frames, trouble, &mut |frame| sender.receive(frame, self.now_ns))
            })();
            let mut status = LinkStatus::default();
            sender.fill_status(&mut status);
            if let LinkState::Comparing { done_bytes, .. } | LinkState::Copying { done_bytes, .. } =
                status.state
                && !is_resumed
            {
                (ended.resumed_at, is_resumed) = (done_bytes, true);
            }
            match outcome {
                Err(fault) => {
                    ended.fault = Some(fault);
                    return ended;
                }
                Ok(true) => return ended,
                Ok(false) => {}
            }
            if status.state == LinkState::Streaming && status.acknowledged == volume.tip_lsn() {
                return ended;
            }
        }
        panic!("it does not end");
    }

    /// The second site shows what the first one does, now and at every instant that it has.
    pub fn check_equal(&self) {
        let (a, b) = (self.a.volume(), self.b.volume());
        assert_eq!(b.durable_lsn(), a.tip_lsn());
        for lsn in b.oldest().0.0..=b.tip_lsn().0 {
            assert_eq!(a.size_at(Lsn(lsn)), b.size_at(Lsn(lsn)));
            assert!(content(&a, Lsn(lsn)) == content(&b, Lsn(lsn)), "the states at lsn:{lsn} differ");
        }
    }
}

/// Frame by frame, so that the line can be cut between any two; whether it was.
fn deliver(
    said: &[u8],
    frames: &mut u64,
    trouble: Trouble,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<bool, Fault> {
    let mut rest = said;
    while !rest.is_empty() {
        if matches!(trouble, Trouble::CutAfter(count) if *frames >= count) {
            return Ok(true);
        }
        let len = rest.get(8..12).map_or(0, |len| u32::from_le_bytes(len.try_into().unwrap())) as usize;
        let (frame, behind) = rest.split_at((FRAME_HEADER_BYTES + len).min(rest.len()));
        *frames += 1;
        take(frame)?;
        rest = behind;
    }
    Ok(false)
}

pub fn write(volume: &Volume, block: u64, bytes: &[u8]) {
    let mut results = Vec::new();
    volume.apply(SessionId(2), &[Change::Write { offset: block * BLOCK_BYTES, data: bytes }], &mut results);
    assert!(results[0].is_ok());
    volume.flush().unwrap();
}

pub fn content(volume: &Arc<Volume>, lsn: Lsn) -> Vec<u8> {
    let view = View::open(volume.clone(), lsn, "a check").unwrap();
    let mut bytes = vec![0; view.size_bytes() as usize];
    let mut reads = [Read { offset: 0, buffer: &mut bytes, result: Ok(()) }];
    view.read(&mut reads);
    let [read] = reads;
    read.result.unwrap();
    bytes
}

/// All states that a volume has.
pub fn states(volume: &Arc<Volume>) -> Vec<(Lsn, Vec<u8>)> {
    (volume.oldest().0.0..=volume.tip_lsn().0).map(|lsn| (Lsn(lsn), content(volume, Lsn(lsn)))).collect()
}
