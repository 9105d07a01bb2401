//! The file `ballots` of a voter: what it is bound to, and the id of its site. FORMAT.md, "Ballots".
//!
//! Legal states after a crash: the ballots before or those after a change; once the change was answered, those after. A
//! missing file is a voter that never answered anything, so it is written, with its id, before the first answer.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::format::manifest::Manifest;
use cdp_core::ids::VolumeId;
use cdp_core::io::{Files, read_file, replace_file};

use super::board::{Ballots, Kept};
use super::{Ballot, SiteId, fresh_site};

/// Name of the file in a store, or in a witness's directory.
pub const BALLOTS_FILE: &str = "ballots";
const KIND: &str = "cdp-ballots";
const VERSION: u32 = 1;
/// Longest file that is read, in bytes: an entry has less than 200.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The file.
pub struct BallotFile {
    files: Arc<dyn Files>,
    path: PathBuf,
    site: SiteId,
}

impl BallotFile {
    /// Reads it, or makes it with a new id from `random`. Whoever asks sees to it that nobody else has it open.
    pub fn open(files: Arc<dyn Files>, dir: &Path, random: u128) -> Result<(BallotFile, Ballots)> {
        let path = dir.join(BALLOTS_FILE);
        match read_file(&*files, &path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let file = BallotFile { files, path, site: fresh_site(random) };
                let none = Ballots::new();
                file.keep(&none).at(|| format!("writing {}", file.path.display()))?;
                Ok((file, none))
            }
            other => {
                let bytes = other.at(|| format!("reading {}", path.display()))?;
                let (site, ballots) = decode(&bytes).ok_or_else(|| {
                    let context = format!("{} is damaged or of a newer version", path.display());
                    Error::new(Kind::Damaged, context).hint(
                        "remove it only when no site has answered anything for ten seconds: it says to whom this voter is bound",
                    )
                })?;
                Ok((BallotFile { files, path, site }, ballots))
            }
        }
    }

    /// The id of this site.
    pub fn site(&self) -> SiteId {
        self.site
    }

    /// Durable when this returns.
    pub fn keep(&self, ballots: &Ballots) -> io::Result<()> {
        replace_file(&*self.files, &self.path, &encode(self.site, ballots))
    }
}

fn encode(site: SiteId, ballots: &Ballots) -> Vec<u8> {
    let mut manifest = Manifest::new(KIND, VERSION);
    manifest.set("site", VolumeId(site.0));
    for (id, Kept { ballot, name }) in ballots {
        manifest.set(&format!("ballot.{id}"), format!("{}/{}/{name}", ballot.epoch, VolumeId(ballot.site.0)));
    }
    manifest.encode()
}

fn decode(bytes: &[u8]) -> Option<(SiteId, Ballots)> {
    let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
    let mut ballots = Ballots::new();
    for (key, value) in &manifest.values {
        let Some(id) = key.strip_prefix("ballot.") else { continue };
        let mut fields = value.splitn(3, '/');
        let epoch = fields.next()?.parse().ok()?;
        let site = SiteId(u128::from_str_radix(fields.next()?, 16).ok()?);
        let kept = Kept { ballot: Ballot { epoch, site }, name: fields.next()?.to_owned() };
        ballots.insert(VolumeId(u128::from_str_radix(id, 16).ok()?), kept);
    }
    Some((SiteId(manifest.get_hex("site")?), ballots))
}

#[cfg(test)]
mod tests {
    use cdp_core::io::sim::{CrashAt, PowerLoss, SimDisk};

    use super::*;

    fn ballots(epoch: u64) -> Ballots {
        let kept = Kept { ballot: Ballot { epoch, site: SiteId(7) }, name: "site-a".to_owned() };
        Ballots::from([(VolumeId(1), kept)])
    }

    // The file's bytes, as FORMAT.md has them: what a voter of yesterday was bound to binds that of tomorrow.
    #[test]
    fn golden() {
        let text = String::from_utf8(encode(SiteId(0xab), &ballots(3))).unwrap();
        let body = "cdp-ballots 1\n\
            ballot.00000000000000000000000000000001 = 3/00000000000000000000000000000007/site-a\n\
            site = 000000000000000000000000000000ab\n";
        assert_eq!(
            text.strip_prefix(body),
            Some(&format!("crc32 = {:08x}\n", crc32fast::hash(body.as_bytes()))[..])
        );
        assert_eq!(decode(text.as_bytes()), Some((SiteId(0xab), ballots(3))));
    }

    // A voter that told somebody of its ballot, loses power, and grants the same epoch to the other: two sites answer.
    #[test]
    fn a_ballot_that_was_told_survives_any_crash() {
        let dir = Path::new("/voter");
        let mut crashes = 0;
        for power in [false, true] {
            for at in [CrashAt::Before, CrashAt::During, CrashAt::After] {
                for after in 1..40 {
                    let disk = SimDisk::new(after);
                    disk.create_dir(dir).unwrap();
                    disk.sync_dir(Path::new("/")).unwrap();
                    let (file, _) = BallotFile::open(Arc::new(disk.clone()), dir, 5).unwrap();
                    file.keep(&ballots(1)).unwrap();
                    disk.set_crash_after(after, at);
                    let mut told = 1;
                    for epoch in 2..5 {
                        match file.keep(&ballots(epoch)) {
                            Ok(()) => told = epoch,
                            Err(_) => break,
                        }
                    }
                    let crashed = disk.is_crashed();
                    crashes += u64::from(crashed);
                    disk.clear_crash();
                    let disk = match power {
                        true => disk.crash_power_with(PowerLoss::seeded(after)),
                        false => disk.crash_process(),
                    };
                    let (file, found) = BallotFile::open(Arc::new(disk), dir, 6).unwrap();
                    assert_eq!(file.site(), SiteId(5));
                    let epoch = found[&VolumeId(1)].ballot.epoch;
                    let most = if crashed { told + 1 } else { told };
                    assert!(
                        (told..=most).contains(&epoch),
                        "told of {told}, found {epoch}: {at:?} {after}, power {power}"
                    );
                }
            }
        }
        assert!(crashes > 50, "{crashes}");
    }
}
