//! The file `ballots` of a voter: what it is bound to, and the id of its site. FORMAT.md, "Ballots".
//!
//! Legal states after a crash: the ballots before or those after a change; once the change was answered, those after. A
//! missing file is a voter that never answered anything, so it is written, with its id, before the first answer. What is
//! read need not be durable: a process that died between the renaming and the sync of the directory left it in the
//! cache. So it is kept anew when it is opened, or else before the first grant.

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

/// What was found when it was opened.
pub struct Opened {
    /// The file.
    pub file: BallotFile,
    /// What the voter is bound to.
    pub ballots: Ballots,
    /// Whether the disk is known to have these.
    pub is_durable: bool,
}

/// The file.
pub struct BallotFile {
    files: Arc<dyn Files>,
    path: PathBuf,
    site: SiteId,
}

impl BallotFile {
    /// Reads it, or makes it with a new id from `random`. Whoever asks sees to it that nobody else has it open.
    pub fn open(files: Arc<dyn Files>, dir: &Path, random: u128) -> Result<Opened> {
        let path = dir.join(BALLOTS_FILE);
        match read_file(&*files, &path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let file = BallotFile { files, path, site: fresh_site(random) };
                let none = Ballots::new();
                file.keep(&none).at(|| format!("writing {}", file.path.display()))?;
                Ok(Opened { file, ballots: none, is_durable: true })
            }
            other => {
                let bytes = other.at(|| format!("reading {}", path.display()))?;
                let (site, ballots) = decode(&bytes).ok_or_else(|| {
                    let context = format!("{} is damaged or of a newer version", path.display());
                    Error::new(Kind::Damaged, context).hint(
                        "remove it only when no site has answered anything for ten seconds: it says to whom this voter is bound",
                    )
                })?;
                let file = BallotFile { files, path, site };
                // A full disk is no reason not to start: then the first grant has to keep them.
                let kept = file.keep(&ballots);
                if let Err(error) = &kept {
                    tracing::warn!(%error, "the ballots of {} cannot be kept anew yet", file.path.display());
                }
                Ok(Opened { file, ballots, is_durable: kept.is_ok() })
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
                    let file = BallotFile::open(Arc::new(disk.clone()), dir, 5).unwrap().file;
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
                    let opened = BallotFile::open(Arc::new(disk), dir, 6).unwrap();
                    assert_eq!(opened.file.site(), SiteId(5));
                    let epoch = opened.ballots[&VolumeId(1)].ballot.epoch;
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

    // kill -9 between the renaming and the sync of the directory: what the next process reads is in the cache and nowhere
    // else. It tells somebody of it, loses power, and is bound to another site again.
    #[test]
    fn a_ballot_that_was_only_read_is_durable_before_it_is_told() {
        let dir = Path::new("/voter");
        let mut found_newer = 0;
        for after in 1..20 {
            let disk = SimDisk::new(after);
            disk.create_dir(dir).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            let file = BallotFile::open(Arc::new(disk.clone()), dir, 5).unwrap().file;
            file.keep(&ballots(1)).unwrap();
            disk.set_crash_after(after, CrashAt::Before);
            let kept = file.keep(&ballots(2));
            disk.clear_crash();
            let disk = disk.crash_process();
            let opened = BallotFile::open(Arc::new(disk.clone()), dir, 6).unwrap();
            let told = opened.ballots[&VolumeId(1)].ballot.epoch;
            found_newer += u64::from(kept.is_err() && told == 2);
            assert!(opened.is_durable);
            for seed in 0..8 {
                let disk = disk.crash_power_with(PowerLoss::seeded(seed));
                let again = BallotFile::open(Arc::new(disk), dir, 6).unwrap().ballots;
                assert_eq!(
                    again[&VolumeId(1)].ballot.epoch,
                    told,
                    "crash at step {after}, power loss {seed}"
                );
            }
        }
        assert!(found_newer > 0, "no crash fell between the renaming and the sync: this shows nothing");
    }

    // A disk that is full when the voter starts: it starts, and says that its ballots may not be durable.
    #[test]
    fn ballots_that_cannot_be_kept_anew_are_told_apart() {
        let dir = Path::new("/voter");
        let disk = SimDisk::new(1);
        disk.create_dir(dir).unwrap();
        BallotFile::open(Arc::new(disk.clone()), dir, 5).unwrap().file.keep(&ballots(1)).unwrap();
        // Opening and reading need none of the disk's steps; keeping does.
        disk.set_crash_after(1, CrashAt::Before);
        let opened = BallotFile::open(Arc::new(disk), dir, 6).unwrap();
        assert!(!opened.is_durable && opened.ballots == ballots(1));
    }
}
