//! `VOL@POINT:/path` as it is typed.

use cdp_core::error::{Error, Kind, Result};

use super::{PATH_BYTES_MAX, shown};

/// Which state of which volume, and which path in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileTarget {
    /// `VOL` or `VOL@POINT`.
    pub disk: String,
    /// The names from the root on; `None` when no path was given.
    pub path: Option<Vec<Vec<u8>>>,
}

impl FileTarget {
    /// Takes it apart: the path begins at the first `:/`. No name and no point has a slash behind a colon.
    pub fn parse(text: &str) -> Result<FileTarget> {
        if text.len() > PATH_BYTES_MAX {
            return Err(Error::new(Kind::Invalid, "a path of that length is no path"));
        }
        Ok(match text.split_once(":/") {
            Some((disk, path)) => FileTarget { disk: disk.to_owned(), path: Some(names(path.as_bytes())) },
            None => FileTarget { disk: text.strip_suffix(':').unwrap_or(text).to_owned(), path: None },
        })
    }

    /// The path, which this command cannot do without.
    pub fn need_path(&self) -> Result<&[Vec<u8>]> {
        self.path.as_deref().ok_or_else(|| {
            // A path from the root is what was meant, where there is a slash or no point before the colon.
            let colon = match self.disk.find('/') {
                Some(slash) => self.disk[..slash].rfind(':'),
                None if !self.disk.contains('@') => self.disk.find(':'),
                None => None,
            };
            let meant = match colon {
                Some(at) => format!("{}:/{}", &self.disk[..at], &self.disk[at + 1..]),
                None => format!("{}:/path/to/file", self.disk),
            };
            Error::new(Kind::Invalid, format!("{} names no file", self.disk))
                .hint(format!("put its path from the root behind a colon: {meant}"))
        })
    }

    /// As it is typed.
    pub fn text(&self) -> String {
        match &self.path {
            Some(path) => format!("{}:{}", self.disk, shown(path)),
            None => format!("{}:", self.disk),
        }
    }
}

/// The names of a path; `.` means nothing, `..` takes a name away, and above the root is the root.
pub fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name.to_vec()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    // Somebody wrote the path as scp takes it: the line to copy is theirs, mended.
    #[test]
    fn a_path_without_its_root_is_mended_in_the_hint() {
        for (text, meant) in [
            ("dd:a/b/c", "dd:/a/b/c"),
            ("dd:letter", "dd:/letter"),
            ("dd@10:03:a/b", "dd@10:03:/a/b"),
            ("dd@10:03", "dd@10:03:/path/to/file"),
            ("dd", "dd:/path/to/file"),
        ] {
            let error = FileTarget::parse(text).unwrap().need_path().unwrap_err();
            assert!(error.hint_text().unwrap().ends_with(&format!(": {meant}")), "{text}: {error}");
        }
    }

    // A colon in a time of day must not be taken for the beginning of the path.
    #[test]
    fn the_path_begins_at_the_first_colon_with_a_slash() {
        for (text, disk, path) in [
            ("disk@10:03:/etc/passwd", "disk@10:03", Some("/etc/passwd")),
            ("disk@2026-11-21T10:00:00Z:/", "disk@2026-11-21T10:00:00Z", Some("/")),
            ("disk@before:upgrade:/a/../b//./c:/d", "disk@before:upgrade", Some("/b/c:/d")),
            ("disk:/x", "disk", Some("/x")),
            ("disk:/../../x", "disk", Some("/x")),
            ("disk@lsn:5:", "disk@lsn:5", None),
            ("disk@lsn:5", "disk@lsn:5", None),
        ] {
            let target = FileTarget::parse(text).unwrap();
            assert_eq!(target.disk, disk, "{text}");
            assert_eq!(target.path.as_deref().map(shown).as_deref(), path, "{text}");
        }
    }
}
