//! First copies of replicas: a state of another site that is received piece by piece, across restarts, until it is whole
//! and becomes a volume.
//!
//! ```text
//! STORE/copies/HEX/     the copy of the volume with this id: base, and
//! STORE/copies/HEX/copy manifest: which state it is, and up to where it is durable
//! ```
//!
//! Legal states after a crash: the copy up to what its manifest says, whatever stands behind that; or the whole volume.
//! Of the same state the same bytes come again, so what stands behind is written over.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::replicas::{Copied, Origin};
use super::{Store, VOLUMES_DIR, make_dir, validate_volume_name};
use crate::base::BaseWriter;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::HISTORY_FILE;
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::record::Chain;
use crate::ids::*;
use crate::io::{Files, read_file, replace_file};
use crate::journal::mark::MARK_FILE;
use crate::volume::Volume;
use crate::volume::epoch::write_epochs;
use crate::volume::open::{Accept, MANIFEST_FILE, create, open_on};

const COPIES_DIR: &str = "copies";
const COPY_FILE: &str = "copy";
const KIND: &str = "cdp-copy";
const VERSION: u32 = 1;

/// How far a first copy has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyState {
    /// Which state it is.
    pub copied: Copied,
    /// It is durable up to this byte.
    pub done_bytes: u64,
    // So many pieces of the base may be there.
    pieces: u64,
}

impl CopyState {
    fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("lsn", self.copied.lsn);
        manifest.set("ns", self.copied.at.0);
        manifest.set("chain", format!("{:032x}", u128::from_be_bytes(self.copied.chain.0)));
        manifest.set("size_bytes", self.copied.size_bytes);
        manifest.set("done_bytes", self.done_bytes);
        manifest.set("pieces", self.pieces);
        manifest.encode()
    }

    fn decode(bytes: &[u8]) -> Option<CopyState> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
        Some(CopyState {
            copied: Copied {
                lsn: Lsn(manifest.get("lsn")?),
                at: Timestamp(manifest.get("ns")?),
                chain: Chain(manifest.get_hex("chain")?.to_be_bytes()),
                size_bytes: manifest.get("size_bytes")?,
            },
            done_bytes: manifest.get("done_bytes")?,
            pieces: manifest.get("pieces")?,
        })
    }
}

/// A first copy that is being received.
pub struct ReplicaCopy {
    files: Arc<dyn Files>,
    dir: PathBuf,
    origin: Origin,
    state: CopyState,
    writer: BaseWriter,
}

impl ReplicaCopy {
    /// How far it has come.
    pub fn state(&self) -> CopyState {
        self.state
    }

    /// Writes whole blocks; those of zeros need not be.
    pub fn write(&mut self, first: Lba, blocks: &[u8]) -> Result<()> {
        let end = first.0.saturating_mul(BLOCK_BYTES).saturating_add(blocks.len() as u64);
        if end > self.state.copied.size_bytes.next_multiple_of(BLOCK_BYTES) {
            let context = format!("blocks at {first:?} reach behind the end of the copied state");
            return Err(Error::new(Kind::Invalid, context));
        }
        self.writer.write(first.0, blocks)
    }

    /// Everything up to this byte was written: makes that durable.
    pub fn settle(&mut self, done_bytes: u64) -> Result<()> {
        self.writer.sync()?;
        let state = CopyState { done_bytes, pieces: self.writer.pieces(), ..self.state };
        write_state(&*self.files, &self.dir, &state)?;
        self.state = state;
        Ok(())
    }
}

fn write_state(files: &dyn Files, dir: &Path, state: &CopyState) -> Result<()> {
    let path = dir.join(COPY_FILE);
    replace_file(files, &path, &state.encode()).at(|| format!("writing {}", path.display()))
}

fn remove_if_there(files: &dyn Files, path: &Path) -> Result<()> {
    match files.remove(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.at(|| format!("removing {}", path.display())),
    }
}

impl Store {
    fn copy_dir(&self, id: VolumeId) -> PathBuf {
        self.path.join(COPIES_DIR).join(id.to_string())
    }

    /// The first copy of this volume that was begun here, if there is one.
    pub fn copy_state(&self, id: VolumeId) -> Result<Option<CopyState>> {
        let path = self.copy_dir(id).join(COPY_FILE);
        match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // One that cannot be read is begun anew.
            other => Ok(CopyState::decode(&other.at(|| format!("reading {}", path.display()))?)),
        }
    }

    /// Begins a first copy of the state that `origin` names, or goes on with it. One of another state is thrown away.
    pub fn take_copy(&self, origin: &Origin) -> Result<ReplicaCopy> {
        let copied = origin.copied.ok_or_else(|| Error::new(Kind::Invalid, "a copy of no state"))?;
        origin.check_sizes()?;
        let files = self.shared.files.clone();
        let dir = self.copy_dir(origin.id);
        let known = self.copy_state(origin.id)?.filter(|state| state.copied == copied);
        let (state, writer) = match known {
            Some(state) => {
                let writer =
                    BaseWriter::resume(files.clone(), &dir, origin.id, copied.size_bytes, state.pieces)?;
                (state, writer)
            }
            None => {
                make_dir(&*files, &self.path.join(COPIES_DIR))
                    .and_then(|()| match files.remove_dir_all(&dir) {
                        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                        _ => make_dir(&*files, &dir),
                    })
                    .at(|| format!("making {}", dir.display()))?;
                let state = CopyState { copied, done_bytes: 0, pieces: 0 };
                write_state(&*files, &dir, &state)?;
                (state, BaseWriter::new(files.clone(), &dir, origin.id, copied.size_bytes))
            }
        };
        Ok(ReplicaCopy { files, dir, origin: origin.clone(), state, writer })
    }

    /// A copy that is whole becomes a volume.
    ///
    /// Legal states after a crash: the copy, whole, or the volume.
    pub fn finish_copy(&self, name: &str, mut copy: ReplicaCopy) -> Result<Arc<Volume>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        validate_volume_name(name)?;
        let files = &*self.shared.files;
        let volumes_dir = self.path.join(VOLUMES_DIR);
        let to = volumes_dir.join(name);
        if files.list(&to).is_ok()
            || self.groups.lock().expect("no panics under this lock").contains_key(name)
        {
            return Err(Error::new(Kind::Exists, format!("there is a volume {name:?} already")));
        }
        self.refuse_second(copy.origin.id)?;
        copy.settle(copy.state.copied.size_bytes)?;
        let (identity, begin) = copy.origin.identity(name, self.shared.clock.now());
        // What an attempt before left half done.
        for left in [MARK_FILE, MANIFEST_FILE, HISTORY_FILE] {
            remove_if_there(files, &copy.dir.join(left))?;
        }
        if let Some((history, epochs)) = begin {
            write_epochs(&self.shared, &copy.dir, &epochs)?;
            let path = copy.dir.join(HISTORY_FILE);
            replace_file(files, &path, &history.encode()).at(|| format!("writing {}", path.display()))?;
        }
        create(&self.shared, &copy.dir, &identity)?;
        files
            .rename(&copy.dir, &to)
            .and_then(|()| files.sync_dir(&volumes_dir))
            .and_then(|()| files.sync_dir(&self.path.join(COPIES_DIR)))
            .at(|| format!("naming {}", to.display()))?;
        // It says nothing any more, and nobody reads it there.
        let _ = files.remove(&to.join(COPY_FILE));
        let volume = open_on(&self.shared, &to, Accept::default(), None)?;
        self.volumes.lock().expect("no panics under this lock").insert(name.to_owned(), volume.clone());
        Ok(volume)
    }
}
