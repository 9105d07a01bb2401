//! The state file: which state of which volume a target holds.

use std::path::Path;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use cdp_core::io::{Files, read_file, replace_file};

const KIND: &str = "cdp-follow";
const VERSION: u32 = 1;

/// A state of a volume, as both sides know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The record.
    pub lsn: u64,
    /// Its timestamp in Unix nanoseconds.
    pub ns: u64,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
}

/// How far a target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It is filled for the first time, or compared as a whole.
    Copying {
        /// Nothing was there before: what is not written reads as zeros.
        fresh: bool,
        /// Everything before this byte is done and durable.
        offset: u64,
    },
    /// It holds the state.
    Standing,
    /// A step too large for the delta file goes to it, and was not finished.
    Rewriting,
    /// It holds the state, and is no longer ours.
    HandedOver,
}

/// The state file's content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowState {
    /// Identity of the volume.
    pub volume_id: String,
    /// Which state; while copying, which one it will be.
    pub position: Position,
    /// How far it is.
    pub phase: Phase,
    /// What the target looked like when this was written: another look tells whether somebody else wrote to it.
    pub witness: Option<String>,
}

impl FollowState {
    /// Reads it; `None` if there is none. One that makes no sense is [`Kind::Damaged`].
    pub fn load(files: &dyn Files, path: &Path) -> Result<Option<FollowState>> {
        let bytes = match read_file(files, path, MANIFEST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(error, format!("reading {}", path.display()))),
        };
        let state = Manifest::decode(&bytes).filter(|manifest| manifest.kind == KIND);
        let state = state.ok_or_else(|| {
            Error::new(Kind::Damaged, format!("{} is not what `cdp restore --follow` wrote", path.display()))
                .hint("remove it, and say --force: the target is then compared as a whole")
        })?;
        if state.version != VERSION {
            let context = format!("{} is of version {}, this is {VERSION}", path.display(), state.version);
            return Err(Error::new(Kind::Invalid, context));
        }
        let missing = || Error::new(Kind::Damaged, format!("{} lacks a line", path.display()));
        FollowState::of(&state).map(Some).ok_or_else(missing)
    }

    fn of(manifest: &Manifest) -> Option<FollowState> {
        let phase = match manifest.values.get("phase")?.as_str() {
            "copying" => Phase::Copying { fresh: manifest.get("fresh")?, offset: manifest.get("offset")? },
            "standing" => Phase::Standing,
            "rewriting" => Phase::Rewriting,
            "handed-over" => Phase::HandedOver,
            _ => return None,
        };
        Some(FollowState {
            volume_id: manifest.values.get("volume")?.clone(),
            position: Position {
                lsn: manifest.get("lsn")?,
                ns: manifest.get("ns")?,
                size_bytes: manifest.get("size")?,
            },
            phase,
            witness: manifest.values.get("witness").cloned(),
        })
    }

    /// Writes it; durable when this returns. After a crash in the middle the old one is there, or the new one.
    pub fn save(&self, files: &dyn Files, path: &Path) -> Result<()> {
        let mut manifest = Manifest::new(KIND, VERSION);
        manifest.set("volume", &self.volume_id);
        manifest.set("lsn", self.position.lsn);
        manifest.set("ns", self.position.ns);
        manifest.set("size", self.position.size_bytes);
        let phase = match self.phase {
            Phase::Copying { fresh, offset } => {
                manifest.set("fresh", fresh);
                manifest.set("offset", offset);
                "copying"
            }
            Phase::Standing => "standing",
            Phase::Rewriting => "rewriting",
            Phase::HandedOver => "handed-over",
        };
        manifest.set("phase", phase);
        if let Some(witness) = &self.witness {
            manifest.set("witness", witness);
        }
        replace_file(files, path, &manifest.encode()).at(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::io::sim::SimDisk;

    fn states() -> Vec<FollowState> {
        let position = Position { lsn: 42, ns: 1_763_719_200_000_000_000, size_bytes: 1 << 30 };
        let phases = [
            Phase::Copying { fresh: true, offset: 4096 },
            Phase::Standing,
            Phase::Rewriting,
            Phase::HandedOver,
        ];
        let of = |phase| FollowState { volume_id: "0a".repeat(16), position, phase, witness: None };
        phases.into_iter().map(of).collect()
    }

    // A target that is taken for whole when it is half a copy boots, and rots.
    #[test]
    fn what_is_written_is_read_and_nothing_else_is_believed() {
        let disk = SimDisk::new(1);
        let path = Path::new("/x.cdp-follow");
        assert_eq!(FollowState::load(&disk, path).unwrap(), None);
        for mut state in states() {
            state.witness = Some("device a 1".to_owned());
            state.save(&disk, path).unwrap();
            assert_eq!(FollowState::load(&disk, path).unwrap(), Some(state));
        }
        let len = disk.contents(path).unwrap().len() as u64;
        for at in 0..len {
            disk.rot(path, at, 4).unwrap();
            assert_eq!(FollowState::load(&disk, path).unwrap_err().kind(), Kind::Damaged, "byte {at}");
            disk.rot(path, at, 4).unwrap();
        }
        assert!(FollowState::load(&disk, path).is_ok());
    }

    #[test]
    fn golden_bytes() {
        let disk = SimDisk::new(1);
        let path = Path::new("/x.cdp-follow");
        states()[0].save(&disk, path).unwrap();
        let text = String::from_utf8(disk.contents(path).unwrap()).unwrap();
        let wanted = "cdp-follow 1\nfresh = true\nlsn = 42\nns = 1763719200000000000\noffset = 4096\n\
            phase = copying\nsize = 1073741824\nvolume = 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\ncrc32 = ";
        assert_eq!(&text[..text.len() - 9], wanted);
    }
}
