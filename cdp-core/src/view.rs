//! A read-only device at one LSN, and the throw-away writable clone on top of it.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::base::Source as Over;
use crate::device::{Change, Content, Device, Read, Stretch};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::bytes::crc32;
use crate::ids::*;
use crate::index::Visible;
use crate::io::{File, Files};
use crate::volume::clone::holder_of_clone;
use crate::volume::coalesced::Coalesced;
use crate::volume::pins::PinGuard;
use crate::volume::shown::Shown;
use crate::volume::{Volume, check_range, read_visible};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A volume as it was after one record.
pub struct View {
    volume: Arc<Volume>,
    visible: Visible,
    size_bytes: u64,
    lsn: Lsn,
    // Holds the state as long as the view is open. None: it was gone already, or is not here yet.
    pin: Option<PinGuard>,
    // It is read over the state that is pinned, which is what `visible` tells of.
    over: Option<Arc<Coalesced>>,
}

impl View {
    /// Opens the state at `lsn` and holds it. Reads nothing, replays nothing. Where the horizon has passed it, or it lies
    /// beyond the tip, every read of it is an error; [`View::open`] says so at once.
    pub fn new(volume: Arc<Volume>, lsn: Lsn) -> View {
        let is_there = lsn <= volume.tip_lsn();
        let pin = if is_there { volume.pin(lsn, "a view").ok() } else { None };
        View::pinned(volume, lsn, pin)
    }

    /// As [`View::new`], for the clone of this name that reads from it.
    pub fn for_clone(volume: Arc<Volume>, lsn: Lsn, clone: &str) -> View {
        let pin = volume.pin(lsn, &holder_of_clone(clone)).ok();
        View::pinned(volume, lsn, pin)
    }

    /// As [`View::new`], for `holder`, who is named where the view keeps history from going.
    /// [`Kind::OutOfRange`] if the state is before the horizon, or beyond the tip; [`Kind::Closed`] if the volume was closed.
    pub fn open(volume: Arc<Volume>, lsn: Lsn, holder: &str) -> Result<View> {
        drop(volume.use_files()?);
        if lsn > volume.tip_lsn() {
            return Err(volume.is_gone(lsn));
        }
        let pin = volume.pin(lsn, holder)?;
        Ok(View::pinned(volume, lsn, Some(pin)))
    }

    /// As [`View::open`], of what is `shown` of the volume: also the newest state that came ahead of its history.
    pub fn of(volume: Arc<Volume>, shown: &Shown, lsn: Lsn, holder: &str) -> Result<View> {
        // The history may have arrived there meanwhile: it shows the same.
        let Some(newest) = shown.newest_at(lsn).filter(|_| lsn > volume.tip_lsn()) else {
            return View::open(volume, lsn, holder);
        };
        View::over(volume, newest.clone(), holder)
    }

    /// Opens a newest state that came ahead of the history, whatever is shown of the volume.
    pub(crate) fn over(volume: Arc<Volume>, newest: Arc<Coalesced>, holder: &str) -> Result<View> {
        let state = newest.state();
        let pin = volume.pin_what_is_there(state.from, holder)?;
        let mut view = View::pinned(volume, state.from, Some(pin));
        (view.lsn, view.size_bytes) = (state.lsn, state.size_bytes);
        view.over = Some(newest);
        Ok(view)
    }

    fn pinned(volume: Arc<Volume>, lsn: Lsn, pin: Option<PinGuard>) -> View {
        let visible = volume.visible(lsn);
        let size_bytes = volume.size_at(lsn);
        View { volume, visible, size_bytes, lsn, pin, over: None }
    }

    /// An error if the state is gone.
    fn check_pinned(&self) -> Result<()> {
        if self.pin.is_some() { Ok(()) } else { Err(self.volume.is_gone(self.lsn)) }
    }

    /// Which record it stands behind.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Which records it sees. Of a newest state that came ahead of the history: those that it lies over.
    pub fn visible(&self) -> &Visible {
        &self.visible
    }

    /// Whether it is a newest state, whose records are not here yet: nothing can be told of what changed in it.
    pub fn is_ahead(&self) -> bool {
        self.over.is_some()
    }

    /// Reads whole blocks, also the one that the end cuts.
    pub(crate) fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        let volume = &self.volume;
        let Some(over) = &self.over else { return volume.reader(&self.visible).read_blocks(first, buffer) };
        let end = volume.size_at(over.state().from).div_ceil(BLOCK_BYTES);
        over.overlay().read(first, buffer, &mut |first, buffer| {
            let inside = end.saturating_sub(first).min((buffer.len() / BLOCK) as u64) as usize * BLOCK;
            let (inside, behind) = buffer.split_at_mut(inside);
            behind.fill(0);
            match volume.reader(&self.visible).read_blocks(first, inside) {
                // A segment was dropped between the look at the index and the read: the index has the answer now.
                Err(error) if error.kind() == Kind::NotFound => {
                    volume.reader(&self.visible).read_blocks(first, inside)
                }
                other => other,
            }
        })
    }

    fn read_ahead(&self, read: &mut Read<'_>) -> Result<()> {
        let len = read.buffer.len() as u64;
        check_range(read.offset, len, self.size_bytes)?;
        let (first, end) = (read.offset / BLOCK_BYTES, (read.offset + len).div_ceil(BLOCK_BYTES));
        if read.offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES) {
            return self.read_blocks(first, read.buffer);
        }
        let mut blocks = vec![0; (end - first) as usize * BLOCK];
        self.read_blocks(first, &mut blocks)?;
        let inside = (read.offset % BLOCK_BYTES) as usize;
        read.buffer.copy_from_slice(&blocks[inside..inside + len as usize]);
        Ok(())
    }

    fn extents_ahead(
        &self,
        over: &Coalesced,
        offset: u64,
        len: u64,
        stretches_max: usize,
    ) -> Result<Vec<Stretch>> {
        let end = offset + len;
        let below_end = self.volume.size_at(over.state().from);
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = offset;
        while at < end && stretches.len() < stretches_max {
            let (until, source) = over.overlay().look(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES))?;
            let until = (until * BLOCK_BYTES).min(end);
            let found = match source {
                Over::Zeros => vec![Stretch { len: until - at, content: Content::Hole }],
                Over::Own => vec![Stretch { len: until - at, content: Content::Data }],
                Over::Below if at >= below_end => vec![Stretch { len: until - at, content: Content::Hole }],
                Over::Below => {
                    let len = until.min(below_end) - at;
                    let room = stretches_max - stretches.len();
                    self.volume.reader(&self.visible).extents(at, len, room)?
                }
            };
            for stretch in found {
                at += stretch.len;
                match stretches.last_mut() {
                    Some(last) if last.content == stretch.content => last.len += stretch.len,
                    _ => stretches.push(stretch),
                }
            }
        }
        Ok(stretches)
    }

    /// Whose past it is.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }
}

impl Device for View {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn apply(&self, _session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        let refuse = || {
            Err(Error::new(Kind::ReadOnly, "the past cannot be changed")
                .hint("`+rw` behind the point gives a throw-away writable clone"))
        };
        results.extend(changes.iter().map(|_| refuse()));
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        if let Err(error) = self.check_pinned() {
            reads.iter_mut().for_each(|read| read.result = Err(error.duplicate()));
            return;
        }
        if self.over.is_some() {
            for read in reads {
                read.result = self.read_ahead(read);
            }
            return;
        }
        read_visible(&self.volume, &self.volume.reader(&self.visible), self.size_bytes, reads);
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        self.check_pinned()?;
        check_range(offset, len, self.size_bytes)?;
        if let Some(over) = &self.over {
            return self.extents_ahead(over, offset, len, stretches_max);
        }
        self.volume.reader(&self.visible).extents(offset, len, stretches_max)
    }
}

/// A writable clone of a view that is gone with its last user. What is written to it goes to a nameless
/// file, up to a cap; nothing of it survives anything.
pub struct ThrowAway {
    view: View,
    file: Arc<dyn File>,
    cap_bytes: u64,
    overlay: Mutex<Overlay>,
}

#[derive(Default)]
struct Overlay {
    // Blocks with content of their own; they win over `zeroed`.
    blocks: BTreeMap<u64, Slot>,
    // Disjoint ranges start → end that read as zeros instead of the view.
    zeroed: BTreeMap<u64, u64>,
    free: Vec<u64>,
    slots: u64,
    changes: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    crc: u32,
}

impl ThrowAway {
    /// A clone of `view` that may grow to `cap_bytes`; its file is made in `dir` and has no name for long.
    pub fn new(view: View, files: &dyn Files, dir: &Path, cap_bytes: u64, random: u128) -> Result<ThrowAway> {
        let path = dir.join(format!("clone-{random:032x}.tmp"));
        let file = files
            .create(&path)
            .and_then(|file| files.remove(&path).map(|()| file))
            .at(|| format!("making {}", path.display()))?;
        Ok(ThrowAway { view, file, cap_bytes, overlay: Mutex::new(Overlay::default()) })
    }

    /// What it is a clone of.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What it holds of its own, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.overlay.lock().expect("no panics under this lock").blocks.len() as u64 * BLOCK_BYTES
    }

    /// What it may hold, in bytes.
    pub fn cap_bytes(&self) -> u64 {
        self.cap_bytes
    }

    fn change(&self, overlay: &mut Overlay, change: &Change<'_>) -> Result<Lsn> {
        let size_bytes = self.view.size_bytes();
        match *change {
            Change::Write { offset, data } => {
                check_range(offset, data.len() as u64, size_bytes)?;
                self.write(overlay, offset, data)?;
            }
            Change::Zero { offset, len, .. } | Change::Trim { offset, len } => {
                check_range(offset, len, size_bytes)?;
                self.zero(overlay, offset, len)?;
            }
        }
        overlay.changes += 1;
        Ok(Lsn(self.view.lsn().0 + overlay.changes))
    }

    fn write(&self, overlay: &mut Overlay, offset: u64, data: &[u8]) -> Result<()> {
        let needed = (offset + data.len() as u64).div_ceil(BLOCK_BYTES) - offset / BLOCK_BYTES;
        let free = self.cap_bytes / BLOCK_BYTES + overlay.free.len() as u64
            - overlay.slots.min(self.cap_bytes / BLOCK_BYTES);
        let fresh =
            needed - overlay.blocks.range(offset / BLOCK_BYTES..offset / BLOCK_BYTES + needed).count() as u64;
        if fresh > free {
            let context = format!("the throw-away clone holds its cap of {} bytes", self.cap_bytes);
            return Err(Error::new(Kind::NoSpace, context));
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let inside = (at % BLOCK_BYTES) as usize;
            let (now, later) = rest.split_at(rest.len().min(BLOCK - inside));
            let lba = at / BLOCK_BYTES;
            if now.len() == BLOCK {
                self.store(overlay, lba, now)?;
            } else {
                let mut block = vec![0; BLOCK];
                self.load(overlay, lba, &mut block)?;
                block[inside..inside + now.len()].copy_from_slice(now);
                self.store(overlay, lba, &block)?;
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn store(&self, overlay: &mut Overlay, lba: u64, block: &[u8]) -> Result<()> {
        let number = match overlay.blocks.get(&lba) {
            Some(slot) => slot.number,
            None => overlay.free.pop().unwrap_or_else(|| {
                overlay.slots += 1;
                overlay.slots - 1
            }),
        };
        self.file
            .write_at(number * BLOCK_BYTES, &[IoSlice::new(block)])
            .at(|| "writing to a throw-away clone".to_owned())?;
        overlay.blocks.insert(lba, Slot { number, crc: crc32(block) });
        Ok(())
    }

    fn zero(&self, overlay: &mut Overlay, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = offset + len;
        let (first, last) = (offset.div_ceil(BLOCK_BYTES), end / BLOCK_BYTES);
        if first > last {
            return self.write(overlay, offset, &vec![0; len as usize]);
        }
        let head = first * BLOCK_BYTES - offset;
        let tail = end - last * BLOCK_BYTES;
        self.write(overlay, offset, &vec![0; head as usize])?;
        self.write(overlay, last * BLOCK_BYTES, &vec![0; tail as usize])?;
        let gone: Vec<u64> = overlay.blocks.range(first..last).map(|(lba, _)| *lba).collect();
        for lba in gone {
            let slot = overlay.blocks.remove(&lba);
            overlay.free.extend(slot.map(|slot| slot.number));
        }
        overlay.zero_blocks(first, last);
        Ok(())
    }

    fn load(&self, overlay: &Overlay, first: u64, buffer: &mut [u8]) -> Result<()> {
        let blocks = (buffer.len() / BLOCK) as u64;
        let mut at = first;
        while at < first + blocks {
            let (end, source) = overlay.look(at, first + blocks);
            let place = (at - first) as usize * BLOCK..(end - first) as usize * BLOCK;
            let part = &mut buffer[place];
            match source {
                Source::Zero => part.fill(0),
                Source::View => {
                    self.view.check_pinned()?;
                    self.view.read_blocks(at, part)?;
                }
                Source::Own(slot) => {
                    self.file
                        .read_at(slot.number * BLOCK_BYTES, part)
                        .at(|| "reading a throw-away clone".to_owned())?;
                    if crc32(part) != slot.crc {
                        return Err(Error::new(Kind::Damaged, format!("block {at} of a throw-away clone")));
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    fn read_one(&self, overlay: &Overlay, read: &mut Read<'_>) -> Result<()> {
        let len = read.buffer.len() as u64;
        check_range(read.offset, len, self.view.size_bytes())?;
        let (first, end) = (read.offset / BLOCK_BYTES, (read.offset + len).div_ceil(BLOCK_BYTES));
        if read.offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES) {
            return self.load(overlay, first, read.buffer);
        }
        let mut blocks = vec![0; (end - first) as usize * BLOCK];
        self.load(overlay, first, &mut blocks)?;
        let inside = (read.offset - first * BLOCK_BYTES) as usize;
        read.buffer.copy_from_slice(&blocks[inside..inside + len as usize]);
        Ok(())
    }
}

enum Source {
    View,
    Zero,
    Own(Slot),
}

impl Overlay {
    /// Where the blocks from `at` come from, and up to which block (at most `to`) from the same place.
    fn look(&self, at: u64, to: u64) -> (u64, Source) {
        let next_own = self.blocks.range(at..to).next();
        let until = match next_own {
            Some((lba, slot)) if *lba == at => return (at + 1, Source::Own(*slot)),
            Some((lba, _)) => *lba,
            None => to,
        };
        match self.zeroed.range(..=at).next_back() {
            Some((_, end)) if *end > at => ((*end).min(until), Source::Zero),
            _ => {
                let next_zero = self.zeroed.range(at..until).next().map_or(until, |(start, _)| *start);
                (next_zero, Source::View)
            }
        }
    }

    fn zero_blocks(&mut self, first: u64, last: u64) {
        let (mut start, mut end) = (first, last);
        if start >= end {
            return;
        }
        // Ranges that touch or overlap become one.
        let touching: Vec<(u64, u64)> = self
            .zeroed
            .range(..=end)
            .rev()
            .map(|(from, to)| (*from, *to))
            .take_while(|(_, to)| *to >= first)
            .collect();
        for (from, to) in touching {
            self.zeroed.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.zeroed.insert(start, end);
    }
}

impl Device for ThrowAway {
    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn apply(&self, _session: SessionId, changes: &[Change<'_>], results: &mut Vec<Result<Lsn>>) {
        let _using = match self.view.volume.use_files() {
            Ok(using) => using,
            Err(error) => return results.extend(changes.iter().map(|_| Err(error.duplicate()))),
        };
        let mut overlay = self.overlay.lock().expect("no panics under this lock");
        results.extend(changes.iter().map(|change| self.change(&mut overlay, change)));
    }

    fn flush(&self) -> Result<()> {
        // Nothing of a throw-away clone is promised to survive.
        Ok(())
    }

    fn read(&self, reads: &mut [Read<'_>]) {
        // Some blocks of its own are no disk.
        let _using = match self.view.volume.use_files() {
            Ok(using) => using,
            Err(error) => return reads.iter_mut().for_each(|read| read.result = Err(error.duplicate())),
        };
        let overlay = self.overlay.lock().expect("no panics under this lock");
        for read in reads {
            read.result = self.read_one(&overlay, read);
        }
    }

    fn extents(&self, offset: u64, len: u64, stretches_max: usize) -> Result<Vec<Stretch>> {
        check_range(offset, len, self.size_bytes())?;
        let overlay = self.overlay.lock().expect("no panics under this lock");
        let end = offset + len;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = offset;
        while at < end && stretches.len() < stretches_max {
            let (until, source) = overlay.look(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
            let until = (until * BLOCK_BYTES).min(end);
            let found = match source {
                Source::Zero => vec![Stretch { len: until - at, content: Content::Hole }],
                Source::Own(_) => vec![Stretch { len: until - at, content: Content::Data }],
                Source::View => self.view.extents(at, until - at, stretches_max - stretches.len())?,
            };
            for stretch in found {
                at += stretch.len;
                match stretches.last_mut() {
                    Some(last) if last.content == stretch.content => last.len += stretch.len,
                    _ => stretches.push(stretch),
                }
            }
        }
        Ok(stretches)
    }
}
