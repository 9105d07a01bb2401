//! Bringing a volume to what a file or a block device holds now: only what differs is written.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::device::{Change, Content, Device, Read};
use cdp_core::error::{Error, Kind, Result};
use cdp_core::ids::{BLOCK_BYTES, SessionId};
use cdp_core::volume::Volume;
use serde::{Deserialize, Serialize};

use super::mark::{self, Mark, Marked};
use super::{Site, Watch};
use crate::image::source::{Piece, Writers};
use crate::image::{Format, Source, usage};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Of the volume, compared with zeros at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;

/// A source to compare a volume with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The volume.
    pub volume: String,
    /// A file or a block device.
    pub from: PathBuf,
    /// Its format; without it, what its first bytes say.
    pub format: Option<Format>,
    /// Filesystems on it may be mounted, if they are frozen.
    pub frozen: bool,
    /// Name of the marker that is set when it is done.
    pub marker: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The volume.
    pub volume: String,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes that differed, and were written.
    pub written_bytes: u64,
    /// The marker of the state that the source and the volume have in common.
    pub marker: Marked,
}

/// Brings the volume to the source. Ended in the middle, it has done nothing in vain: what is alike already is not
/// written again.
pub fn import(site: &Site, request: &Import, watch: &mut Watch<'_>) -> Result<Imported> {
    let volume = site.store.volume(&request.volume)?;
    refuse_if_used(site, &volume)?;
    let writers = if request.frozen { Writers::Frozen } else { Writers::None };
    if request.frozen {
        refuse_own_filesystem(site, request)?;
    }
    let mut source = Source::open(&request.from, request.format, writers)?;
    if source.bytes() > volume.size_bytes() {
        let (name, bytes) = (volume.name(), source.bytes());
        let context = format!("{} has {bytes} bytes, more than {name}", source.name());
        return Err(Error::new(Kind::Invalid, context).hint(format!("cdp grow {name} {bytes}")));
    }
    let mark = Mark {
        target: volume.name().to_owned(),
        name: request.marker.clone(),
        note: format!("as {}", source.name()),
        tags: vec!["import".to_owned()],
        application: None,
    };
    // Nothing is changed for a marker that could not be set.
    mark::check(&mark)?;
    let mut writing = Writing { volume: &volume, written_bytes: 0, found: vec![0; STEP_BYTES as usize] };
    if let Some(at) = writing.first_beyond(source.bytes())? {
        let (name, bytes) = (volume.name(), source.bytes());
        let context = format!(
            "{} has {bytes} bytes, and {name} has data beyond them, at byte {at}: it would be part of both",
            source.name()
        );
        return Err(Error::new(Kind::Invalid, context).hint(format!(
            "another disk belongs into a volume of its own: cdp create NAME --from {}",
            source.name()
        )));
    }
    let what = format!("comparing {} with {}", volume.name(), source.name());
    // Once the source turns out to have changed meanwhile, this is an error, and no marker is set.
    source.walk(&what, watch, &mut |piece| match piece {
        Piece::Data(at, data) => writing.bring(at, data),
        Piece::Zeros(at, len) => writing.clear(at, len),
    })?;
    let written_bytes = writing.written_bytes;
    volume.flush()?;
    let marked = mark::mark(&site.store, &mark)?.into_iter().next();
    let marker = marked.ok_or_else(|| Error::new(Kind::NotFound, "the marker that was just set"))?;
    let compared_bytes = source.bytes();
    Ok(Imported { volume: volume.name().to_owned(), compared_bytes, written_bytes, marker })
}

/// What a client has in its caches is not what it will find.
fn refuse_if_used(site: &Site, volume: &Volume) -> Result<()> {
    let Some(server) = &site.server else { return Ok(()) };
    let clients = server.nbd.clients();
    let using = clients.iter().find(|client| client.export.as_deref() == Some(volume.name()));
    let Some(client) = using else { return Ok(()) };
    let context = format!("the volume {} is in use by {}", volume.name(), client.peer);
    Err(Error::new(Kind::Busy, context).hint("detach it first: what it holds is about to change"))
}

/// A frozen filesystem that the store is on would wait for us, and we for it.
fn refuse_own_filesystem(site: &Site, request: &Import) -> Result<()> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let ours = device(site.store.path());
    for dir in usage::uses(&request.from)?.into_iter().filter_map(|used| used.mount) {
        if ours.is_some() && device(&dir) == ours {
            let context = format!("the store is on {}, which is to be frozen", dir.display());
            return Err(
                Error::new(Kind::Refused, context).hint("put the store elsewhere, or use a rescue system")
            );
        }
    }
    Ok(())
}

struct Writing<'a> {
    volume: &'a Arc<Volume>,
    written_bytes: u64,
    found: Vec<u8>,
}

impl Writing<'_> {
    /// The first byte of the volume from `at` on that is not zero: behind the end of a source that is all that the two may
    /// have in common.
    fn first_beyond(&mut self, at: u64) -> Result<Option<u64>> {
        let end = self.volume.size_bytes();
        let mut from = at;
        while from < end {
            for stretch in self.volume.extents(from, end - from, 256)? {
                let stop = from + stretch.len;
                while stretch.content == Content::Data && from < stop {
                    let step = (stop - from).min(STEP_BYTES);
                    self.look(from, step as usize)?;
                    if let Some(byte) = self.found[..step as usize].iter().position(|byte| *byte != 0) {
                        return Ok(Some(from + byte as u64));
                    }
                    from += step;
                }
                from = stop;
            }
        }
        Ok(None)
    }

    /// Writes the blocks that are not these.
    fn bring(&mut self, at: u64, wanted: &[u8]) -> Result<()> {
        self.look(at, wanted.len())?;
        let differs = |from: usize| {
            let to = (from + BLOCK).min(wanted.len());
            wanted[from..to] != self.found[from..to]
        };
        let (mut from, mut changed) = (0, Vec::new());
        while from < wanted.len() {
            let mut end = from;
            while end < wanted.len() && differs(end) {
                end += BLOCK;
            }
            if end > from {
                changed.push((from, end.min(wanted.len())));
            }
            from = end.max(from + BLOCK);
        }
        for (from, end) in changed {
            self.change(Change::Write { offset: at + from as u64, data: &wanted[from..end] }, end - from)?;
        }
        Ok(())
    }

    /// Clears what is not zeros.
    fn clear(&mut self, at: u64, len: u64) -> Result<()> {
        let end = at + len;
        let mut from = at;
        while from < end {
            for stretch in self.volume.extents(from, end - from, 256)? {
                let stop = from + stretch.len;
                while stretch.content == Content::Data && from < stop {
                    let step = (stop - from).min(STEP_BYTES);
                    self.look(from, step as usize)?;
                    if self.found[..step as usize].iter().any(|byte| *byte != 0) {
                        self.change(Change::Zero { offset: from, len: step, hole: true }, step as usize)?;
                    }
                    from += step;
                }
                from = stop;
            }
        }
        Ok(())
    }

    fn look(&mut self, at: u64, len: usize) -> Result<()> {
        let mut reads = [Read { offset: at, buffer: &mut self.found[..len], result: Ok(()) }];
        self.volume.read(&mut reads);
        let [read] = reads;
        read.result
    }

    fn change(&mut self, change: Change<'_>, bytes: usize) -> Result<()> {
        let mut results = Vec::new();
        self.volume.apply(SessionId::STORE, &[change], &mut results);
        self.written_bytes += bytes as u64;
        results.into_iter().try_for_each(|result| result.map(drop))
    }
}
