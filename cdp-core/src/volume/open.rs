//! Making a volume and opening it again, whatever happened in between.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use super::advance::Duties;
use super::clone::Parent;
use super::cut::{self, CutAt, Orphan};
use super::doubt::Doubted;
use super::epoch::EpochState;
use super::gather::Gathered;
use super::ledger::Ledger;
use super::parts::{self, FreshParts, Frozen, Part, PartIndex, Parts};
use super::pins::Pins;
use super::retain::History;
use super::role::{Role, RoleNow};
use super::rollback::{Door, Held};
use super::source::SourceState;
use super::upkeep::UpkeepState;
use super::{Health, Identity, MarkState, Notes, Shared, Staged, Volume, durable, upkeep};
use crate::base::Base;
use crate::device::Device;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::history::{HISTORY_FILE, HistoryState};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::mark::Mark;
use crate::format::record::Chain;
use crate::format::run::MergedSource;
use crate::format::segment::is_merged_run_name;
use crate::history::course::Course;
use crate::history::retention::Policy;
use crate::ids::*;
use crate::index::Run;
use crate::io::{Files, read_file, replace_file};
use crate::journal::append::{Appender, Position};
use crate::journal::commit::Commit;
use crate::journal::looked::LookedFile;
use crate::journal::mark::MarkFile;
use crate::journal::pool::Pool;
use crate::journal::reappend::{self, Cut};
use crate::journal::recover::{self, Begin, Found, KnownFromRun, Recovered, Request};
use crate::journal::segment::{Fill, Segment};
use crate::journal::verdict::Verdict;
use crate::limits::VOLUME_BYTES_MAX;

/// Name of a volume's manifest in its directory.
pub const MANIFEST_FILE: &str = "volume";
/// Name of the file with the volume's retention policy; missing where none was set.
pub const RETENTION_FILE: &str = "retention";
const MANIFEST_KIND: &str = "cdp-volume";
const COPY_STEP_BYTES: u64 = 64 << 10;
/// Of a primary; and of a volume with another role, which older programs must not write to.
const MANIFEST_VERSION: u32 = 1;
const MANIFEST_VERSION_ROLE: u32 = 2;

/// What somebody accepted when opening a volume that was refused before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Both slots of the mark are gone; go by the other witnesses.
    pub mark_loss: bool,
    /// Records that were durable are gone; go on with what is before them.
    pub loss: bool,
}

impl Identity {
    fn manifest(&self) -> Manifest {
        let version = if self.role == Role::Primary { MANIFEST_VERSION } else { MANIFEST_VERSION_ROLE };
        let mut manifest = Manifest::new(MANIFEST_KIND, version);
        self.role.put(&mut manifest);
        manifest.set("name", &self.name);
        manifest.set("id", self.id);
        manifest.set("size_bytes", self.first_size_bytes);
        manifest.set("created_ns", self.created.0);
        manifest.set("segment_bytes", self.segment_bytes);
        manifest.set("marker_interval_ns", self.marker_interval_ns);
        if let Some(cap) = self.journal_cap_bytes {
            manifest.set("journal_cap_bytes", cap);
        }
        if let Some(held) = &self.held {
            manifest.set("held_ns", held.since.0);
            manifest.set("held_why", held.why.replace('\n', " "));
        }
        if let Some(parent) = &self.parent {
            manifest.set("parent_id", parent.id);
            manifest.set("parent_lsn", parent.lsn.0);
        }
        let chain = |chain: Chain| format!("{:032x}", u128::from_be_bytes(chain.0));
        if let Some(cut) = &self.cut {
            manifest.set("cut_lsn", cut.lsn);
            manifest.set("cut_chain", chain(cut.chain));
        }
        if let Some(orphan) = &self.orphan {
            manifest.set("orphan_of", orphan.of);
            manifest.set("orphan_fork", orphan.fork);
            manifest.set("orphan_through", orphan.through);
            manifest.set("orphan_chain", chain(orphan.chain));
        }
        manifest
    }

    fn from_manifest(manifest: &Manifest) -> Option<Identity> {
        let role = match manifest.version {
            MANIFEST_VERSION => Role::Primary,
            MANIFEST_VERSION_ROLE => Role::from(manifest)?,
            _ => return None,
        };
        if manifest.kind != MANIFEST_KIND {
            return None;
        }
        let chain = |key: &str| Some(Chain(manifest.get_hex(key)?.to_be_bytes()));
        Some(Identity {
            role,
            name: manifest.get("name")?,
            id: VolumeId(manifest.get_hex("id")?),
            first_size_bytes: manifest.get("size_bytes")?,
            created: Timestamp(manifest.get("created_ns")?),
            segment_bytes: manifest.get("segment_bytes")?,
            journal_cap_bytes: manifest.get("journal_cap_bytes"),
            marker_interval_ns: manifest.get("marker_interval_ns")?,
            held: manifest.get("held_ns").map(|since| Held {
                since: Timestamp(since),
                why: manifest.get("held_why").unwrap_or_default(),
            }),
            parent: match manifest.get_hex("parent_id") {
                Some(id) => Some(Parent { id: VolumeId(id), lsn: Lsn(manifest.get("parent_lsn")?) }),
                None => None,
            },
            cut: match manifest.get("cut_lsn") {
                Some(lsn) => Some(CutAt { lsn: Lsn(lsn), chain: chain("cut_chain")? }),
                None => None,
            },
            orphan: match manifest.get_hex("orphan_of") {
                Some(of) => Some(Orphan {
                    of: VolumeId(of),
                    fork: Lsn(manifest.get("orphan_fork")?),
                    through: Lsn(manifest.get("orphan_through")?),
                    chain: chain("orphan_chain")?,
                }),
                None => None,
            },
        })
    }
}

/// Puts the mark of a new volume into `dir`, which exists and is otherwise empty (but for a base). The volume is there when
/// its manifest is: that is written last.
pub fn create_mark(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    let mark = Mark {
        volume: identity.id,
        incarnation: Incarnation(0),
        sequence: 0,
        lsn: Lsn::ZERO,
        chain: Chain::default(),
        timestamp: identity.created,
        clean_stop: true,
    };
    MarkFile::create(&*shared.files, dir, mark)
}

/// As [`create_mark`], and the manifest behind it.
pub fn create(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    create_mark(shared, dir, identity)?;
    write_manifest(shared, dir, identity)
}

/// Replaces the manifest.
pub fn write_manifest(shared: &Shared, dir: &Path, identity: &Identity) -> Result<()> {
    let path = dir.join(MANIFEST_FILE);
    replace_file(&*shared.files, &path, &identity.manifest().encode())
        .at(|| format!("writing {}", path.display()))
}

/// Reads a volume's manifest.
pub fn read_manifest(shared: &Shared, dir: &Path) -> Result<Identity> {
    let path = dir.join(MANIFEST_FILE);
    let bytes =
        read_file(&*shared.files, &path, MANIFEST_BYTES_MAX).at(|| format!("reading {}", path.display()))?;
    Manifest::decode(&bytes).as_ref().and_then(Identity::from_manifest).ok_or_else(|| damaged_manifest(&path))
}

/// Reads where the volume's history begins.
pub(super) fn read_history(shared: &Shared, dir: &Path, identity: &Identity) -> Result<HistoryState> {
    let path = dir.join(HISTORY_FILE);
    match read_file(&*shared.files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(HistoryState::beginning(identity.created)),
        other => {
            let bytes = other.at(|| format!("reading {}", path.display()))?;
            HistoryState::decode(&bytes).ok_or_else(|| damaged_manifest(&path))
        }
    }
}

fn read_retention(shared: &Shared, dir: &Path) -> Result<Policy> {
    let path = dir.join(RETENTION_FILE);
    match read_file(&*shared.files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Policy::default()),
        other => {
            let bytes = other.at(|| format!("reading {}", path.display()))?;
            super::retain::decode_policy(&bytes).ok_or_else(|| damaged_manifest(&path))
        }
    }
}

fn damaged_manifest(path: &Path) -> Error {
    Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display()))
        .hint("restore it from a backup of the store; the journal itself is not touched")
}

/// Opens a volume: recovers its journal, and makes what it shows durable before anybody can read it.
/// Never fails because the journal is damaged: then the volume is read-only and says why.
pub fn open(shared: &Shared, dir: &Path, accept: Accept) -> Result<Arc<Volume>> {
    open_on(shared, dir, accept, None)
}

/// As [`open`]; `parent` is the view that the base of a clone is.
pub fn open_on(
    shared: &Shared,
    dir: &Path,
    accept: Accept,
    parent: Option<Arc<dyn Device>>,
) -> Result<Arc<Volume>> {
    let files = &*shared.files;
    let mut identity = read_manifest(shared, dir)?;
    let history = read_history(shared, dir, &identity)?;
    let begin = Begin::from(&history.base);
    if let Some(at) = identity.cut {
        cut::carry_out(shared, dir, &identity, begin, at)?;
        identity.cut = None;
        identity.role = Role::Replica { since: shared.clock.now(), ended: None };
        write_manifest(shared, dir, &identity)?;
    }
    if identity.parent.is_some() != parent.is_some() {
        let context =
            format!("volume {}: a clone is opened with its parent, and only a clone", identity.name);
        return Err(Error::new(Kind::Invalid, context));
    }
    let (mut mark_file, mark) = MarkFile::open(files, dir)?;
    let merged = open_merged_runs(shared, dir, identity.id);
    let is_accepted = accept.loss || accept.mark_loss;
    let mut looked = match is_accepted {
        // Whoever accepts a loss is told of all of it.
        true => LookedFile::empty(shared.files.clone(), dir, identity.id),
        false => LookedFile::load(shared.files.clone(), dir, identity.id),
    };
    let nothing = LookedFile::empty(shared.files.clone(), dir, identity.id);
    let request = Request {
        dir,
        segments: &shared.segments,
        volume: identity.id,
        begin,
        mark,
        accept_mark_loss: accept.mark_loss,
        believe_seals: true,
        run: &|segment| known_from_run(shared, dir, segment, &merged),
        looked: &looked,
        visit: &|_, _| {},
    };
    let mut survey = survey(shared, &identity, &request, accept, &merged);
    if survey.as_ref().is_ok_and(|survey| survey.health != Health::Good) {
        // Something is lost: the whole of it, and what is served, is said by the files alone.
        let request = Request { looked: &nothing, ..request };
        survey = self::survey(shared, &identity, &request, accept, &merged);
    }
    if survey.as_ref().is_err_and(|error| error.kind() == Kind::Damaged) {
        // A seal told where a segment ends, but its run is gone and its records are not what was sealed: go
        // by the records.
        let request = Request { believe_seals: false, looked: &nothing, ..request };
        survey = self::survey(shared, &identity, &request, accept, &merged);
    }
    let Survey { mut recovered, mut health, front, settled, mut parts } = survey?;
    // A process that died may have left names that no sync covers: a segment made ahead, a mark made anew.
    // What is built on them now must not go with the power.
    files.sync_dir(dir).at(|| format!("syncing {}", dir.display()))?;
    let incarnation = Incarnation((shared.clock.random() as u64).max(1));
    let position = recovered.position(&begin);
    shared.clock.pass(position.timestamp);
    let mut pool = Pool::new(
        shared.files.clone(),
        dir.to_owned(),
        identity.segment_bytes,
        std::mem::take(&mut recovered.unused),
        recovered.next_ordinal,
    );

    let mut appender = None;
    let mut lacks_space = false;
    let mut fresh_segment = None;
    if health == Health::Good {
        let mut begin = || -> Result<(Appender, Vec<Arc<Part>>)> {
            if is_accepted {
                // Before the journal goes on without them: a crash in between leaves the loss to be accepted
                // again, never files that nobody knows to keep.
                keep_aside(shared, dir, &recovered, incarnation)?;
            }
            let (fresh, fresh_parts) = append_tail(
                shared,
                &identity,
                incarnation,
                (&recovered, &begin),
                &front,
                settled,
                &mut pool,
            )?;
            mark_file.write(Mark {
                volume: identity.id,
                incarnation,
                sequence: 0,
                lsn: fresh.position.lsn,
                chain: fresh.position.chain,
                timestamp: fresh.position.timestamp,
                clean_stop: false,
            })?;
            Ok((fresh, fresh_parts))
        };
        match begin() {
            Ok((fresh, fresh_parts)) => {
                parts.extend(fresh_parts);
                if !is_accepted {
                    for path in &recovered.dead {
                        // A file that stays costs space only; the next opening tries again.
                        let _ = files.remove(path);
                    }
                }
                remove_orphan_runs(shared, dir, &parts);
                let read = front.iter().filter_map(|found| found.looked).collect();
                let counts: HashSet<u64> = front.iter().map(|found| found.segment.header.ordinal).collect();
                looked.settle(read, |ordinal| counts.contains(&ordinal));
                fresh_segment = Some(fresh.segment.clone());
                appender = Some(fresh);
            }
            Err(error) => {
                lacks_space = error.kind() == Kind::NoSpace;
                let hint = match lacks_space {
                    true => {
                        "free space under the store: it is opened for writing again when nobody is connected to it"
                    }
                    false => "repair the disk under the store, then restart",
                };
                health = Health::ReadOnly {
                    reason: format!("recovery could not append to a fresh segment: {error}"),
                    hint: hint.to_owned(),
                };
                let gathered = Gathered::default();
                let stream = &recovered.stream;
                parts = open_parts(shared, dir, &identity.name, stream, &merged, &gathered, false)?;
            }
        }
    }
    if health != Health::Good {
        for found in &recovered.stream {
            // Nothing may be written, but what is shown is synced as far as the disk allows.
            let _ = found.segment.file.sync();
        }
    }
    let believed = front.iter().filter(|found| found.is_remembered);
    let doubted = believed.map(|found| Doubted::new(&found.segment, found.seal)).collect();
    let position = appender.as_ref().map_or(position, |appender| appender.position);
    let journal_bytes = measure(shared, dir)?;
    let retention = read_retention(shared, dir)?;
    let notes =
        Notes { recovery: describe(&recovered, position), last_error: None, damages: damages(&parts)? };
    let base = match parent {
        Some(parent) => Base::on(&shared.files, dir, identity.id, parent),
        // It may have grown: whatever pieces there are.
        None => Base::open(&shared.files, dir, identity.id, VOLUME_BYTES_MAX)?,
    };
    // Resizes up to the base are gone with their records.
    let first_size_bytes =
        if history.base.lsn > Lsn::ZERO { history.base.size_bytes } else { identity.first_size_bytes };
    let volume = Volume {
        dir: dir.to_owned(),
        shared: shared.clone(),
        incarnation,
        previous_incarnation: recovered.newest_incarnation,
        base,
        lacks_space,
        append: Mutex::new(appender),
        pool: Mutex::new(pool),
        parts: Parts::new(parts),
        staged: Mutex::new(Staged {
            lsn: position.lsn,
            dirty: fresh_segment.into_iter().collect(),
            bytes: 0,
            since_ns: None,
            syncs: 0,
            lost_sync: None,
        }),
        tip: AtomicU64::new(position.lsn.0),
        commit: Commit::new(position.lsn),
        mark: Mutex::new(MarkState { file: mark_file, written: position.lsn }),
        upkeep: Mutex::new(UpkeepState::new(shared.clock.elapsed_ns(), position.lsn)),
        merging: Mutex::default(),
        looked: Mutex::new(looked),
        doubted: Mutex::new(doubted),
        health: Mutex::new(health),
        notes: Mutex::new(notes),
        names: Mutex::default(),
        proving: Mutex::new(()),
        // Every session takes at least one LSN, so that a number never comes again.
        sessions: AtomicU64::new(position.lsn.0 + 1),
        journal_bytes: AtomicU64::new(journal_bytes),
        course: RwLock::new(Course::new(first_size_bytes)),
        size_bytes: AtomicU64::new(first_size_bytes),
        door: Door::new(identity.held.clone()),
        role: RoleNow::new(identity.role.clone()),
        epochs: Mutex::new(EpochState::open(files, dir, identity.id)?),
        manifest: Mutex::new(identity.clone()),
        history: Mutex::new(History::new(history)),
        ledger: Mutex::new(Ledger::open(&shared.files, dir, identity.id)?),
        pins: Pins::above(history.horizon.0),
        retention: Mutex::new(retention),
        duties: Mutex::new(Duties::new(shared.clock.elapsed_ns())),
        source: Mutex::new(SourceState::open(files, dir)?),
        replicas: Mutex::default(),
        identity,
    };
    volume.load_events()?;
    volume.load_replicas()?;
    Ok(Arc::new(volume))
}

fn health_after(name: &str, recovered: &Recovered, accept: Accept) -> Health {
    let (reason, hint) = match recovered.verdict {
        Verdict::CrashTail => return Health::Good,
        Verdict::Lost if accept.loss => return Health::Good,
        Verdict::Lost => (
            format!(
                "records from {:?} on are missing or damaged, and {:?} was durable once ({})",
                recovered.first_bad, recovered.witness, recovered.why
            ),
            format!("bring the missing files back, or see `cdp repair {name}`"),
        ),
        Verdict::Foreign if accept.loss => return Health::Good,
        Verdict::Foreign => (
            "its durable mark belongs to another state of the journal: files were swapped or restored from a copy"
                .to_owned(),
            format!("put the matching files back, or see `cdp repair {name}`"),
        ),
        Verdict::MarkLost => (
            "both slots of its durable mark are unreadable, so nothing tells how far it was durable".to_owned(),
            format!("see `cdp repair {name}`; views of everything that can be read are served"),
        ),
    };
    Health::ReadOnly { reason, hint }
}

fn open_parts(
    shared: &Shared,
    dir: &Path,
    name: &str,
    stream: &[Found],
    merged: &[MergedRun],
    gathered: &Gathered,
    may_write: bool,
) -> Result<Vec<Arc<Part>>> {
    let mut parts = Vec::with_capacity(stream.len());
    let mut at = 0;
    while let Some(found) = stream.get(at) {
        // Those with the most segments come first.
        let fitting = merged.iter().find_map(|merged| Some((merged, merged.sources_of(&stream[at..])?)));
        let Some((merged, sources)) = fitting else {
            let mut part = open_part(shared, dir, found, gathered)?;
            if part.run().is_none() {
                (shared.rebuilding)(name, at + 1, stream.len());
            }
            if may_write {
                leave_memory(shared, dir, &mut part);
            }
            parts.push(Arc::new(part));
            at += 1;
            continue;
        };
        for (found, source) in stream[at..].iter().zip(sources) {
            let hash = found.seal.map_or(source.seal, |seal| seal.hash);
            let frozen = Frozen { last: found.last, end: found.end, may_seal: false, seal_hash: Some(hash) };
            parts.push(Arc::new(Part {
                segment: found.segment.clone(),
                before: found.before,
                frozen: OnceLock::from(frozen),
                index: PartIndex::Run(merged.run.clone()),
                repaired: OnceLock::new(),
            }));
        }
        at += sources.len();
    }
    Ok(parts)
}

/// Gives a part that was read from its sealed segment a run at once, so that however many runs are gone, one segment is
/// in memory at a time. Where that fails it stays in memory, and upkeep tries again.
fn leave_memory(shared: &Shared, dir: &Path, part: &mut Part) {
    let Some(frozen) = part.frozen.get().copied().filter(|frozen| frozen.seal_hash.is_some()) else { return };
    if part.run().is_none()
        && let Ok(run) = upkeep::write_run(shared, dir, part.segment.header.volume, part, frozen)
    {
        part.index = PartIndex::Run(Arc::new(run));
    }
}

/// A run of several segments, and what it says of them.
struct MergedRun {
    run: Arc<Run>,
    sources: Vec<MergedSource>,
}

impl MergedRun {
    /// Those of its segments that `stream` begins with, if there are any.
    fn sources_of(&self, stream: &[Found]) -> Option<&[MergedSource]> {
        let first = stream.first()?.segment.index_id();
        let skipped = self.sources.iter().position(|source| source.segment == first)?;
        let sources = &self.sources[skipped..];
        let fits = |(source, found): (&MergedSource, &Found)| {
            let header = &found.segment.header;
            source.segment == found.segment.index_id()
                && source.ordinal == header.ordinal
                && source.first_lsn == header.first_lsn
                && source.last_lsn == found.last.lsn
                && source.log_end == found.end
                && source.chain == found.last.chain.0
        };
        // The others were dropped or thinned: a layer hides what it still says of them.
        let count = sources.iter().zip(stream).take_while(|pair| fits(*pair)).count();
        (count > 0).then_some(&sources[..count])
    }
}

/// The runs of several segments that can be opened, those with the most segments first.
fn open_merged_runs(shared: &Shared, dir: &Path, volume: VolumeId) -> Vec<MergedRun> {
    let entries = shared.files.list(dir).unwrap_or_default();
    let mut merged: Vec<MergedRun> = entries
        .iter()
        .filter(|entry| is_merged_run_name(&entry.name))
        .filter_map(|entry| {
            // What is wrong with one does not matter: it is made again.
            let run = Run::open(&*shared.files, &dir.join(&entry.name), &shared.pages).ok()?;
            let sources = run.merged_sources().ok()?;
            let fits = run.header().volume == volume && !sources.is_empty();
            fits.then(|| MergedRun { run: Arc::new(run), sources })
        })
        .collect();
    merged.sort_by_key(|merged| std::cmp::Reverse(merged.sources.len()));
    merged
}

/// What recovery found, and what is made of it.
struct Survey {
    recovered: Recovered,
    health: Health,
    /// What was surely synced and stays where it is; the rest is appended again.
    front: Vec<Found>,
    /// Its newest record.
    settled: Lsn,
    /// Its index.
    parts: Vec<Arc<Part>>,
}

fn survey(
    shared: &Shared,
    identity: &Identity,
    request: &Request<'_>,
    accept: Accept,
    merged: &[MergedRun],
) -> Result<Survey> {
    let gathered = Gathered::default();
    let request = &Request { visit: &|segment, found| gathered.visit(segment, found), ..*request };
    let recovered = recover::recover(&*shared.files, request)?;
    let health = health_after(&identity.name, &recovered, accept);
    let newest = recovered.position(&request.begin).lsn;
    let settled = if health == Health::Good { recovered.witness.min(newest) } else { newest };
    let mut front = recovered.stream.clone();
    recover::cut_stream(&mut front, settled, request.visit)?;
    let may_write = health == Health::Good;
    let parts = open_parts(shared, request.dir, &identity.name, &front, merged, &gathered, may_write)?;
    Ok(Survey { recovered, health, front, settled, parts })
}

/// After an accepted loss: files that hold nothing of the stream any more are kept, in a directory of their
/// own. (After a crash they are removed: what counted in them stands in the fresh segment.)
fn keep_aside(shared: &Shared, dir: &Path, recovered: &Recovered, incarnation: Incarnation) -> Result<()> {
    let files = &*shared.files;
    let aside = dir.join(format!("lost-{incarnation}"));
    let moved = files.create_dir(&aside).and_then(|()| files.sync_dir(dir)).and_then(|()| {
        // What follows the cut in the last segment that stays will go one day: keep a copy of that file.
        if let Some(last) = recovered.stream.last() {
            let path = &last.segment.path;
            copy_file(files, &last.segment, &aside.join(path.file_name().unwrap_or_default()))?;
        }
        for path in &recovered.dead {
            files.rename(path, &aside.join(path.file_name().unwrap_or_default()))?;
        }
        files.sync_dir(&aside)?;
        files.sync_dir(dir)
    });
    moved.at(|| format!("keeping old files in {}", aside.display()))
}

fn copy_file(files: &dyn Files, segment: &Segment, to: &Path) -> std::io::Result<()> {
    let copy = files.create(to)?;
    let bytes = segment.file.len()?;
    let mut buffer = vec![0; COPY_STEP_BYTES as usize];
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(COPY_STEP_BYTES) as usize;
        // What cannot be read stays a hole in the copy.
        if segment.file.read_at(at, &mut buffer[..step]).is_ok() {
            copy.write_at(at, &[std::io::IoSlice::new(&buffer[..step])])?;
        }
        at += step as u64;
    }
    copy.sync()
}

fn append_tail(
    shared: &Shared,
    identity: &Identity,
    incarnation: Incarnation,
    (recovered, begin): (&Recovered, &Begin),
    front: &[Found],
    settled: Lsn,
    pool: &mut Pool,
) -> Result<(Appender, Vec<Arc<Part>>)> {
    let last = front.last();
    let position = last.map_or(begin.position, |found| found.last);
    let cut = Cut {
        predecessor: last.map_or(begin.segment, |found| found.segment.header.id),
        predecessor_end: last.map_or(0, |found| found.end),
        position,
        volume: identity.id,
        incarnation,
        previous_incarnation: recovered.newest_incarnation,
        epoch: last.map_or(EpochNumber(1), |found| found.segment.header.epoch),
    };
    let mut placed = FreshParts::behind(position);
    let tail = &recovered.stream[front.len().saturating_sub(1)..];
    let appender = reappend::reappend(
        cut,
        pool,
        &|| shared.clock.random(),
        &mut |sink| {
            tail.iter().filter(|found| found.last.lsn > settled).try_for_each(|found| {
                durable::read_records(&found.segment, found.before, settled, found.last.lsn, sink)
            })
        },
        &mut placed,
        // Whoever is served is likely to commit in small steps.
        if shared.prewrite { Fill::Written } else { Fill::Reserved },
    )?;
    Ok((appender, placed.finish()))
}

/// The part of a segment that takes no more records: its run if that stands and fits, else from the segment.
fn open_part(shared: &Shared, dir: &Path, found: &Found, gathered: &Gathered) -> Result<Part> {
    let header = &found.segment.header;
    if let Some(run) = open_run(shared, dir, &found.segment)
        && run.last_lsn() == found.last.lsn
        && run.header().log_end == found.end
    {
        // A run that was written ahead of the seal has none.
        let hash = found.seal.map(|seal| seal.hash).or(run.seal());
        let frozen = Frozen { last: found.last, end: found.end, may_seal: false, seal_hash: hash };
        return Ok(Part {
            segment: found.segment.clone(),
            before: found.before,
            frozen: OnceLock::from(frozen),
            index: PartIndex::Run(Arc::new(run)),
            repaired: OnceLock::new(),
        });
    }
    debug_assert!(found.last.lsn.0 + 1 >= header.first_lsn.0);
    let mut part = match gathered.take(found) {
        Some(part) => part,
        None => parts::rebuild(&found.segment, found.before, found.last.lsn, false)?,
    };
    if let (Some(seal), Some(frozen)) = (found.seal, part.frozen.get_mut()) {
        frozen.seal_hash = Some(seal.hash);
    }
    Ok(part)
}

/// Runs that answer for no part any more. One that stays costs space only.
fn remove_orphan_runs(shared: &Shared, dir: &Path, parts: &[Arc<Part>]) {
    let names: std::collections::BTreeSet<String> = parts
        .iter()
        .map(|part| match part.merged_run().and_then(|run| run.path().file_name()) {
            Some(name) => name.to_string_lossy().into_owned(),
            None => part.segment.run_name(),
        })
        .collect();
    let Ok(entries) = shared.files.list(dir) else { return };
    for entry in entries {
        let run = entry.name.strip_suffix(".new").unwrap_or(&entry.name);
        let is_unfinished = run != entry.name;
        if run.ends_with(".run") && (is_unfinished || !names.contains(run)) {
            let _ = shared.files.remove(&dir.join(&entry.name));
        }
    }
}

fn open_run(shared: &Shared, dir: &Path, segment: &Segment) -> Option<Run> {
    let header = &segment.header;
    let path = dir.join(segment.run_name());
    // A run is made again from its segment whatever is wrong with it.
    let run = Run::open(&*shared.files, &path, &shared.pages).ok()?;
    let fits = run.header().volume == header.volume
        && run.header().run_id == segment.index_id().0
        && run.first_lsn() == header.first_lsn;
    fits.then_some(run)
}

fn known_from_run(
    shared: &Shared,
    dir: &Path,
    segment: &Segment,
    merged: &[MergedRun],
) -> Option<KnownFromRun> {
    let id = segment.header.id;
    if let Some(source) = merged.iter().flat_map(|merged| &merged.sources).find(|source| source.segment == id)
    {
        let last =
            Position { lsn: source.last_lsn, chain: Chain(source.chain), timestamp: source.last_timestamp };
        return Some(KnownFromRun { last, end: source.log_end });
    }
    let run = open_run(shared, dir, segment)?;
    let header = run.header();
    // The run of a segment without records has no timestamp; that of the record before it holds.
    let timestamp = header.last_timestamp.max(segment.header.timestamp_before);
    let last = Position { lsn: header.last_lsn, chain: Chain(header.chain), timestamp };
    Some(KnownFromRun { last, end: header.log_end })
}

fn damages(parts: &[Arc<Part>]) -> Result<Vec<(Lsn, Extent)>> {
    let mut damages = Vec::new();
    for part in parts {
        // Runs list theirs; they are asked by `verify`, so that opening reads the same of a long history.
        if matches!(part.index, PartIndex::Live(_)) {
            damages.extend(part.damages()?.iter().map(|row| (row.lsn, row.extent)));
        }
    }
    Ok(damages)
}

pub(super) fn measure(shared: &Shared, dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let entries = shared.files.list(dir).at(|| format!("listing {}", dir.display()))?;
    for entry in entries.iter().filter(|entry| [".seg", ".fold"].iter().any(|end| entry.name.ends_with(end)))
    {
        let path = dir.join(&entry.name);
        bytes += shared.files.stat(&path).at(|| format!("measuring {}", path.display()))?.len;
    }
    Ok(bytes)
}

fn describe(recovered: &Recovered, position: Position) -> String {
    match recovered.verdict {
        Verdict::CrashTail if position.lsn == recovered.witness => {
            format!("clean: {:?} and everything before it is there", position.lsn)
        }
        Verdict::CrashTail => format!(
            "after a crash: {:?} was known to be durable, kept through {:?} ({})",
            recovered.witness, position.lsn, recovered.why
        ),
        other => format!("{other:?}: serves through {:?} ({})", position.lsn, recovered.why),
    }
}
