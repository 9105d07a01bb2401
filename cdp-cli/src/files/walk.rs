//! From a path to what it means: symbolic links are followed inside the image, and nowhere else.

use cdp_core::error::{Error, Kind, Result};

use super::contain::Contained;
use super::target::names;
use super::{DEPTH_MAX, Entry, EntryKind, Names, PATH_BYTES_MAX, shown};

/// So many links are followed, as Linux does.
const LINKS_MAX: usize = 40;

/// The entry that a path means in the end, and its path without links at its end.
pub fn follow(tree: &mut Contained, path: &Names) -> Result<(Vec<Vec<u8>>, Entry)> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_MAX {
        let entry = tree.entry(&path)?;
        let EntryKind::Symlink(text) = &entry.kind else { return Ok((path, entry)) };
        let mut whole = Vec::new();
        if !text.starts_with(b"/") {
            for name in path.iter().take(path.len().saturating_sub(1)) {
                whole.extend_from_slice(name);
                whole.push(b'/');
            }
        }
        whole.extend_from_slice(text);
        if whole.len() > PATH_BYTES_MAX {
            break;
        }
        path = names(&whole);
    }
    Err(Error::new(Kind::Invalid, format!("{}: too many symbolic links", shown(&path))))
}

/// Visits what lies under a directory, each directory before what is in it.
pub fn each_below(
    tree: &mut Contained,
    path: &Names,
    visit: &mut dyn FnMut(&Names, &Entry) -> Result<()>,
) -> Result<()> {
    if path.len() > DEPTH_MAX {
        let context = format!("{} lies deeper than {DEPTH_MAX} directories", shown(path));
        return Err(Error::new(Kind::Invalid, context));
    }
    for entry in tree.list(path)? {
        let mut below = path.to_vec();
        below.push(entry.name.clone());
        visit(&below, &entry)?;
        if entry.is_dir() {
            each_below(tree, &below, visit)?;
        }
    }
    Ok(())
}
