//! The file that says what the base has: read when it is opened, replaced when pages came into use.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Pieces;
use super::piece::{Piece, Place};
use crate::error::{IoContext, Result};
use crate::format::base_map::{BaseMap, MAP_BYTES_MAX};
use crate::ids::VolumeId;
use crate::io::{Files, read_file, replace_file};

/// Where it stands.
pub(super) fn map_path(dir: &Path) -> PathBuf {
    dir.join("base.map")
}

/// The pieces that the map names; or what is wrong with it.
pub(super) fn load(
    files: &dyn Files,
    dir: &Path,
    volume: VolumeId,
) -> Result<std::result::Result<Pieces, String>> {
    let path = map_path(dir);
    let bytes = match read_file(files, &path, MAP_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what =
                "the map is missing: it was removed, or the volume was made by a version that wrote none";
            return Ok(Err(what.to_owned()));
        }
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => Vec::new(),
        other => other.at(|| format!("reading {}", path.display()))?,
    };
    let Some(map) = BaseMap::decode(&bytes) else {
        return Ok(Err("the map is damaged or of a newer version".to_owned()));
    };
    if map.volume != volume {
        return Ok(Err("the map is another volume's".to_owned()));
    }
    let mut pieces = Pieces::new();
    for (number, words) in map.pieces {
        let number = u64::from(number);
        pieces.insert(number, Arc::new(Piece::open(files, &Place { dir, volume, number }, words)?));
    }
    Ok(Ok(pieces))
}

/// The map's bytes as the pieces are now. What they name has to be durable before they are.
pub(super) fn encode(volume: VolumeId, pieces: &Pieces) -> Vec<u8> {
    let words = |piece: &Arc<Piece>| {
        let pages = piece.pages.read().expect("no panics under this lock");
        (piece.number as u32, pages.words().to_vec())
    };
    BaseMap { volume, pieces: pieces.values().map(words).collect() }.encode()
}

/// Puts it in the place of the one before. Durable when this returns, together with all names in the directory.
pub(super) fn publish(files: &dyn Files, dir: &Path, bytes: &[u8]) -> Result<()> {
    let path = map_path(dir);
    replace_file(files, &path, bytes).at(|| format!("writing {}", path.display()))
}
