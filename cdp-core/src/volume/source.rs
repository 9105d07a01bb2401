//! Of a replica: which site its records come from, and the instant up to which it is known to have all of them.
//!
//! Stands in the manifest `source` of the volume's directory. Without it, whoever may send at all may be the first to.
//! Another site takes its place where somebody says so (`resync`, a reseed); the instant begins anew then.
//! A crash may take the newest instant, never one that was acknowledged: a planned failover counts on it.

use std::io::ErrorKind;
use std::path::Path;

use super::Volume;
use super::role::Role;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ids::Timestamp;
use crate::io::{Files, read_file, replace_file};

/// Name of the file in a volume's directory.
pub const SOURCE_FILE: &str = "source";
const KIND: &str = "cdp-source";
const VERSION: u32 = 1;
/// An instant that moves on is written so often at most, in nanoseconds, and only where it is so far beyond the newest
/// record.
const WRITE_NS: u64 = 1_000_000_000;

/// Where a replica's records come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Name of the site, as its certificate says it.
    pub peer: String,
    /// Everything with a timestamp up to this one is here, and durable.
    pub complete: Timestamp,
}

impl Source {
    fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("peer", self.peer.replace('\n', " "));
        manifest.set("complete_ns", self.complete.0);
        manifest.encode()
    }

    fn decode(bytes: &[u8]) -> Option<Source> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
        Some(Source { peer: manifest.get("peer")?, complete: Timestamp(manifest.get("complete_ns")?) })
    }
}

/// The source, and when it was last written.
pub(super) struct SourceState {
    source: Option<Source>,
    written: (Timestamp, u64),
    // So often the role had changed when something came from it last.
    fed: Option<u64>,
}

impl SourceState {
    pub(super) fn open(files: &dyn Files, dir: &Path) -> Result<SourceState> {
        let path = dir.join(SOURCE_FILE);
        let source = match read_file(files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => {
                let bytes = other.at(|| format!("reading {}", path.display()))?;
                let damaged = || {
                    let context = format!("{} is damaged or of a newer version", path.display());
                    Error::new(Kind::Damaged, context)
                        .hint("remove it: the next site that has the right to send becomes its source")
                };
                Some(Source::decode(&bytes).ok_or_else(damaged)?)
            }
        };
        let written = source.as_ref().map_or(Timestamp(0), |source| source.complete);
        Ok(SourceState { source, written: (written, 0), fed: None })
    }
}

impl Volume {
    /// Whether it takes records of another site, and nothing else.
    pub fn is_replica(&self) -> bool {
        matches!(self.role(), Role::Replica { .. })
    }

    /// Of a replica: where its records come from, once there were any.
    pub fn source(&self) -> Option<Source> {
        self.source.lock().expect("no panics under this lock").source.clone()
    }

    /// The site that feeds it, if that has said something since the volume became a replica: one that was just demoted
    /// has a source of long ago, and may still have to give away its newest records.
    pub fn fed_by(&self) -> Option<String> {
        let changes = self.role_changes();
        let state = self.source.lock().expect("no panics under this lock");
        let source = state.source.as_ref().filter(|_| state.fed == Some(changes));
        source.filter(|_| self.is_replica()).map(|source| source.peer.clone())
    }

    /// Up to when everything is here, and durable: what the source said, or the newest durable record if that is newer.
    pub(super) fn source_complete(&self) -> Timestamp {
        let state = self.source.lock().expect("no panics under this lock");
        state.source.as_ref().map_or(Timestamp(0), |source| source.complete)
    }

    /// The part of it that a crash does not take; what may be acknowledged. Of the newest durable record it is known anyway.
    pub fn durable_complete(&self) -> Timestamp {
        self.source.lock().expect("no panics under this lock").written.0
    }

    /// Takes records of this site only, from now on. Durable when this returns. What another one said of completeness is
    /// forgotten: it was said of a history that may have ended earlier, and the new site has not said anything yet.
    pub fn set_source(&self, peer: &str) -> Result<()> {
        let mut state = self.source.lock().expect("no panics under this lock");
        let same = state.source.as_ref().filter(|source| source.peer == peer);
        let complete = same.map_or(Timestamp(0), |source| source.complete);
        if same.is_none() {
            state.fed = None;
        }
        let source = Source { peer: peer.to_owned(), complete };
        self.write_source(&source)?;
        state.source = Some(source);
        state.written.0 = complete;
        Ok(())
    }

    /// Notes that every record with a timestamp up to `complete` is here and durable, the newest of them from `newest`.
    /// Written down once a second at most, and not at all while records keep coming: of the newest durable one it is
    /// known anyway. But at once when it is told again: the source has been demoted, and whoever drains it waits for this.
    pub fn note_complete(&self, complete: Timestamp, newest: Timestamp) -> Result<()> {
        let now_ns = self.shared.clock.elapsed_ns();
        let mut state = self.source.lock().expect("no panics under this lock");
        state.fed = Some(self.role_changes());
        let (written, written_at_ns) = state.written;
        let Some(source) = state.source.as_mut() else { return Ok(()) };
        // Not above it: its clock may have gone back with a crash of the source.
        let is_last = written < complete && complete <= source.complete;
        source.complete = source.complete.max(complete);
        let is_near = source.complete.0.saturating_sub(newest.max(written).0) < WRITE_NS;
        if !is_last && (is_near || now_ns.saturating_sub(written_at_ns) < WRITE_NS) {
            return Ok(());
        }
        let source = source.clone();
        self.write_source(&source)?;
        state.written = (source.complete, now_ns);
        Ok(())
    }

    fn write_source(&self, source: &Source) -> Result<()> {
        let _using = self.use_files()?;
        let path = self.dir.join(SOURCE_FILE);
        replace_file(&*self.shared.files, &path, &source.encode())
            .at(|| format!("writing {}", path.display()))
    }
}
