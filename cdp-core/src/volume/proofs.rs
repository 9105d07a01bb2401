//! Proofs: states of the past that a program looked at and what it said. A small manifest of the volume's own, as it
//! is a fact of this store and not of the history; replaced as a whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Volume;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::history::point::Timeline;
use crate::ids::{Lsn, Timestamp, VolumeId};
use crate::io::{read_file, replace_file};

const PROOFS_FILE: &str = "proofs";
const KIND: &str = "cdp-proofs";
const VERSION: u32 = 1;
const ID: &str = "id";
const LSN: &str = "lsn.";
/// The newest so many states are kept with their proofs.
pub const PROOFS_MAX: usize = 1000;
/// What is kept of a program's name and arguments, in bytes.
const PROGRAM_BYTES_MAX: usize = 200;

/// What a program said of a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// The state after this record.
    pub lsn: Lsn,
    /// That record's timestamp.
    pub at: Timestamp,
    /// When the program said so.
    pub proved: Timestamp,
    /// All is well; else it is not.
    pub good: bool,
    /// The program, for people; cut and without control characters.
    pub program: String,
}

impl Volume {
    fn proofs_path(&self) -> PathBuf {
        self.dir.join(PROOFS_FILE)
    }

    /// All proofs of states that can still be viewed, oldest state first. A file that is damaged, or of another
    /// volume, is [`Kind::Damaged`].
    pub fn proofs(&self) -> Result<Vec<Proof>> {
        let _using = self.use_files()?;
        let path = self.proofs_path();
        let bytes = match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(error, format!("reading {}", path.display()))),
        };
        let decoded =
            Manifest::decode(&bytes).and_then(|manifest| decode(&manifest, self.identity.journal_id().0));
        let mut proofs = decoded.ok_or_else(|| {
            Error::new(Kind::Damaged, format!("{} cannot be believed", path.display()))
                .hint("remove it: nothing but the proofs is lost, and `cdp prove` makes new ones")
        })?;
        let tip = self.tip_lsn();
        // What was said of a record that was cut off says nothing of the one that stands there now. None was before the
        // first promotion.
        let epochs = self.epochs();
        let first_fork = epochs.list().get(1).map_or(Lsn::MAX, |epoch| epoch.start);
        let is_its_own = |proof: &Proof| {
            proof.lsn <= tip
                && (proof.lsn < first_fork || self.timestamp_of(proof.lsn).is_ok_and(|at| at == proof.at))
        };
        proofs.retain(|proof| self.keeps(proof.lsn) && is_its_own(proof));
        Ok(proofs)
    }

    /// Puts the proofs of states from `from` on into the directory of a volume that is being made, whose states they are.
    pub(crate) fn copy_proofs(&self, dir: &Path, id: VolumeId, from: Lsn) -> Result<()> {
        let mut proofs = self.proofs()?;
        proofs.retain(|proof| proof.lsn >= from);
        if proofs.is_empty() {
            return Ok(());
        }
        let path = dir.join(PROOFS_FILE);
        replace_file(&*self.shared.files, &path, &encode(proofs.iter(), id))
            .at(|| format!("writing {}", path.display()))
    }

    /// Keeps what a program said of the state after `lsn`; it replaces what was said of it before. Durable when
    /// this returns.
    pub fn keep_proof(&self, lsn: Lsn, good: bool, program: &str) -> Result<Proof> {
        let _using = self.use_files()?;
        let at = self.timestamp_of(lsn)?;
        let proof = Proof { lsn, at, proved: self.shared.clock.now(), good, program: shorten(program) };
        let _one = self.proving.lock().expect("no panics under this lock");
        let mut all: BTreeMap<Lsn, Proof> =
            self.proofs()?.into_iter().map(|proof| (proof.lsn, proof)).collect();
        all.insert(lsn, proof.clone());
        while all.len() > PROOFS_MAX {
            all.pop_first();
        }
        let path = self.proofs_path();
        replace_file(&*self.shared.files, &path, &encode(all.values(), self.identity.journal_id()))
            .at(|| format!("writing {}", path.display()))?;
        Ok(proof)
    }

    /// The newest state that a program called good.
    pub fn newest_proof(&self) -> Result<Option<Proof>> {
        Ok(self.proofs()?.into_iter().rev().find(|proof| proof.good))
    }
}

fn encode<'a>(proofs: impl Iterator<Item = &'a Proof>, id: VolumeId) -> Vec<u8> {
    let mut manifest = Manifest::new(KIND, VERSION);
    manifest.set(ID, id);
    for proof in proofs {
        let word = if proof.good { "good" } else { "bad" };
        let value = format!("{word} {} {} {}", proof.at.0, proof.proved.0, proof.program);
        manifest.set(&format!("{LSN}{:020}", proof.lsn.0), value);
    }
    manifest.encode()
}

fn decode(manifest: &Manifest, id: u128) -> Option<Vec<Proof>> {
    if manifest.kind != KIND || manifest.version != VERSION || manifest.get_hex(ID)? != id {
        return None;
    }
    let rows = manifest.values.iter().filter_map(|(key, value)| Some((key.strip_prefix(LSN)?, value)));
    rows.map(|(lsn, value)| {
        let mut words = value.splitn(4, ' ');
        let good = match words.next()? {
            "good" => true,
            "bad" => false,
            _ => return None,
        };
        Some(Proof {
            lsn: Lsn(lsn.parse().ok()?),
            good,
            at: Timestamp(words.next()?.parse().ok()?),
            proved: Timestamp(words.next()?.parse().ok()?),
            program: words.next()?.to_owned(),
        })
    })
    .collect()
}

/// One line, of bounded length.
fn shorten(program: &str) -> String {
    let plain: String = program.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = plain.len().min(PROGRAM_BYTES_MAX);
    while !plain.is_char_boundary(end) {
        end -= 1;
    }
    plain[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proof that an upgrade cannot read is a `latest-proven` that is suddenly gone: this text does not change.
    #[test]
    fn golden_text_of_version_1() {
        let text = "cdp-proofs 1\n\
                    id = 000000000000000000000000000000ff\n\
                    lsn.00000000000000000007 = bad 10 30 fsck -n\n\
                    lsn.00000000000000000042 = good 20 31 \n";
        let crc = crate::format::bytes::crc32(text.as_bytes());
        let manifest = Manifest::decode(format!("{text}crc32 = {crc:08x}\n").as_bytes()).unwrap();
        let proofs = decode(&manifest, 0xff).unwrap();
        let told: Vec<_> =
            proofs.iter().map(|p| (p.lsn.0, p.at.0, p.proved.0, p.good, p.program.as_str())).collect();
        assert_eq!(told, [(7, 10, 30, false, "fsck -n"), (42, 20, 31, true, "")]);
        assert_eq!(decode(&manifest, 0xfe), None, "of another volume");
    }

    /// A program's name may hold anything; the file is lines.
    #[test]
    fn a_program_is_one_short_line() {
        assert_eq!(shorten("sh -c 'a\nb'"), "sh -c 'a b'");
        assert!(shorten(&"é".repeat(300)).len() <= PROGRAM_BYTES_MAX);
    }
}
