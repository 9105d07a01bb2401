//! The file `ballots` of a voter: what it is bound to, and the id of its site, which `voter` has, too: who has to remove
//! damaged ballots would otherwise be another site to the other voters. FORMAT.md, "Small files".
//!
//! Legal states after a crash: the ballots before or those after a change; once the change was answered, those after. A
//! missing file, or one without ballots, is a voter that never granted anything, or one that lost what it granted: it begins with
//! a silence. The file is written, with its id, before the first answer. What is
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
/// Name of the file with the id alone.
pub const VOTER_FILE: &str = "voter";
const KIND: &str = "cdp-ballots";
const VOTER_KIND: &str = "cdp-voter";
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
        let known = read_site(&*files, dir)?;
        let keep_site = |site: SiteId| {
            if known == Some(site) {
                return Ok(());
            }
            write_site(&*files, dir, site).at(|| format!("writing {}", dir.join(VOTER_FILE).display()))
        };
        match read_file(&*files, &path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let site = known.unwrap_or_else(|| fresh_site(random));
                keep_site(site)?;
                let file = BallotFile { files: files.clone(), path, site };
                let none = Ballots::new();
                file.keep(&none).at(|| format!("writing {}", file.path.display()))?;
                Ok(Opened { file, ballots: none, is_durable: true })
            }
            other => {
                let bytes = other.at(|| format!("reading {}", path.display()))?;
                let (site, ballots) = decode(&bytes).ok_or_else(|| {
                    let context = format!("{} is damaged or of a newer version", path.display());
                    Error::new(Kind::Damaged, context).hint(
                        "it says to whom this voter is bound: remove it only while both sites reach each other, so that none of them is left with an epoch that is over; the id of a site is in the file `voter`, which stays",
                    )
                })?;
                let file = BallotFile { files: files.clone(), path, site };
                // A full disk is no reason not to start: then the first grant has to keep them.
                let kept = file.keep(&ballots);
                let kept =
                    kept.at(|| format!("writing {}", file.path.display())).and_then(|()| keep_site(site));
                if let Err(error) = &kept {
                    tracing::warn!(%error, "the ballots of {} cannot be kept anew yet", file.path.display());
                }
                Ok(Opened { file, ballots, is_durable: kept.is_ok() })
            }
        }
    }

    /// What the voter in `dir` is bound to, for whoever only wants to look; nothing where there is no file, or one that
    /// cannot be read.
    pub fn peek(files: &dyn Files, dir: &Path) -> Ballots {
        let bytes = read_file(files, &dir.join(BALLOTS_FILE), FILE_BYTES_MAX);
        bytes.ok().and_then(|bytes| decode(&bytes)).map(|(_, ballots)| ballots).unwrap_or_default()
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

fn read_site(files: &dyn Files, dir: &Path) -> Result<Option<SiteId>> {
    let path = dir.join(VOTER_FILE);
    let bytes = match read_file(files, &path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.at(|| format!("reading {}", path.display()))?,
    };
    let manifest = Manifest::decode(&bytes).filter(|m| m.kind == VOTER_KIND && m.version == VERSION);
    let site = manifest.and_then(|manifest| manifest.get_hex("site")).map(SiteId);
    site.map(Some).ok_or_else(|| {
        let context = format!("{} is damaged or of a newer version", path.display());
        Error::new(Kind::Damaged, context).hint("remove it: the id is in `ballots`, too")
    })
}

fn write_site(files: &dyn Files, dir: &Path, site: SiteId) -> io::Result<()> {
    let mut manifest = Manifest::new(VOTER_KIND, VERSION);
    manifest.set("site", VolumeId(site.0));
    replace_file(files, &dir.join(VOTER_FILE), &manifest.encode())
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

    // Damaged ballots of a site are removed: with a new id it would be another site to the voters, who are bound to the old
    // one, and nobody could answer in that epoch any more.
    #[test]
    fn a_site_without_its_ballots_is_still_the_same_site() {
        let dir = Path::new("/voter");
        let disk = SimDisk::new(1);
        disk.create_dir(dir).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let first = BallotFile::open(Arc::new(disk.clone()), dir, 5).unwrap();
        first.file.keep(&ballots(1)).unwrap();
        let again = BallotFile::open(Arc::new(disk.clone()), dir, 6).unwrap();
        assert!(first.ballots.is_empty() && again.ballots == ballots(1));
        disk.remove(&dir.join(BALLOTS_FILE)).unwrap();
        let disk = disk.crash_power_with(PowerLoss::seeded(1));
        disk.remove(&dir.join(BALLOTS_FILE)).ok();
        let without = BallotFile::open(Arc::new(disk.clone()), dir, 7).unwrap();
        assert!(without.ballots.is_empty());
        assert_eq!(without.file.site(), SiteId(5));
        // And of a store from before that file.
        disk.remove(&dir.join(VOTER_FILE)).unwrap();
        let older = BallotFile::open(Arc::new(disk.clone()), dir, 8).unwrap();
        assert_eq!(older.file.site(), SiteId(5));
        let text =
            String::from_utf8(read_file(&disk, &dir.join(VOTER_FILE), FILE_BYTES_MAX).unwrap()).unwrap();
        let body = "cdp-voter 1\nsite = 00000000000000000000000000000005\n";
        assert_eq!(text, format!("{body}crc32 = {:08x}\n", crc32fast::hash(body.as_bytes())));
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
