//! The replicas that a volume feeds: where they are, how far each has acknowledged, and the pin that keeps what it
//! still needs.
//!
//! Stands in the manifest `replicas` of the volume's directory. An acknowledgement is written some time after it came:
//! until then the pin on the disk is older than it need be, which only keeps more.

use std::io::ErrorKind;
use std::path::Path;

use super::Volume;
use super::pins::PinGuard;
use super::rate::RateLimit;
use super::role::Role;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::codec::Codec;
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::history::retention::AtCap;
use crate::ids::{Lsn, Timestamp};
use crate::io::{Files, read_file, replace_file};
use crate::limits::REPLICAS_MAX;

/// Name of the file in a volume's directory; missing where it feeds none.
pub const REPLICAS_FILE: &str = "replicas";
const KIND: &str = "cdp-replicas";
const VERSION: u32 = 1;
/// An acknowledgement is written down so often at most, in nanoseconds: an older one keeps some seconds more after a
/// restart, and each writing is a commit of the filesystem that clients' commits meet.
const WRITE_NS: u64 = 10_000_000_000;
/// Longest address of a replica, in bytes.
const ADDRESS_BYTES_MAX: usize = 300;

/// A replica of a volume, as it was written down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// `HOST:PORT`.
    pub address: String,
    /// The newest record that it acknowledged, or the state that its first copy is of.
    pub held: Lsn,
    /// Whether `held` was acknowledged.
    pub is_acknowledged: bool,
    /// Everything with a timestamp up to this one is durable there.
    pub complete: Timestamp,
    /// What it needs is gone: nothing is sent until it is made anew.
    pub gave_up: Option<String>,
    /// So fast at most.
    pub limit: RateLimit,
    /// What goes to it is compressed so, if the other side can undo it; else less.
    pub codec: Codec,
    /// The site there, as its certificate says, once it was met.
    pub site: Option<String>,
    /// Where the oldest history may go for new writes, what it still needs may go too: it is given up then.
    pub gives_way: bool,
    /// Where more of the journal than this waits for it, in bytes, the newest state may go first, and history is filled in
    /// behind it.
    pub coalesce_bytes: Option<u64>,
}

struct Fed {
    replica: Replica,
    // None: nothing is held for it any more.
    pin: Option<PinGuard>,
}

/// All replicas of a volume.
#[derive(Default)]
pub(super) struct ReplicaList {
    fed: Vec<Fed>,
    written_at_ns: u64,
}

impl ReplicaList {
    fn encode(&self) -> Vec<u8> {
        let mut manifest = Manifest::new(KIND, VERSION);
        for (number, Fed { replica, .. }) in self.fed.iter().enumerate() {
            let mut set = |key: &str, value: String| manifest.set(&format!("{number:03}.{key}"), value);
            set("address", replica.address.clone());
            set("held_lsn", replica.held.0.to_string());
            set("acknowledged", u8::from(replica.is_acknowledged).to_string());
            set("complete_ns", replica.complete.0.to_string());
            set("limit_bytes_per_s", replica.limit.encode());
            set("codec", replica.codec.to_string());
            set("gives_way", u8::from(replica.gives_way).to_string());
            if let Some(bytes) = replica.coalesce_bytes {
                set("coalesce_bytes", bytes.to_string());
            }
            if let Some(why) = &replica.gave_up {
                set("gave_up", why.replace('\n', " "));
            }
            if let Some(site) = &replica.site {
                set("site", site.replace('\n', " "));
            }
        }
        manifest.encode()
    }

    fn decode(bytes: &[u8]) -> Option<Vec<Replica>> {
        let manifest = Manifest::decode(bytes).filter(|m| m.kind == KIND && m.version == VERSION)?;
        let mut replicas = Vec::new();
        for number in 0..REPLICAS_MAX {
            let key = |key: &str| format!("{number:03}.{key}");
            let Some(address) = manifest.get(&key("address")) else { break };
            replicas.push(Replica {
                address,
                held: Lsn(manifest.get(&key("held_lsn"))?),
                is_acknowledged: manifest.get::<u8>(&key("acknowledged"))? != 0,
                complete: Timestamp(manifest.get(&key("complete_ns"))?),
                gave_up: manifest.get(&key("gave_up")),
                codec: match manifest.get::<String>(&key("codec")) {
                    None => Codec::default(),
                    Some(word) => Codec::from_word(&word)?,
                },
                limit: RateLimit::decode(&manifest.get::<String>(&key("limit_bytes_per_s"))?)?,
                site: manifest.get(&key("site")),
                gives_way: manifest.get::<u8>(&key("gives_way")).unwrap_or(0) != 0,
                coalesce_bytes: manifest.get(&key("coalesce_bytes")),
            });
        }
        Some(replicas)
    }
}

fn read_replicas(files: &dyn Files, dir: &Path) -> Result<Vec<Replica>> {
    let path = dir.join(REPLICAS_FILE);
    match read_file(files, &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => {
            let bytes = other.at(|| format!("reading {}", path.display()))?;
            ReplicaList::decode(&bytes).ok_or_else(|| {
                let context = format!("{} is damaged or of a newer version", path.display());
                Error::new(Kind::Damaged, context).hint("remove it and add the replicas again")
            })
        }
    }
}

fn holder(address: &str) -> String {
    format!("the replica at {address}")
}

impl Volume {
    /// Takes over what was written down, and pins it again; at the opening.
    pub(super) fn load_replicas(&self) -> Result<()> {
        let replicas = read_replicas(&*self.shared.files, &self.dir)?;
        let mut list = self.replicas.lock().expect("no panics under this lock");
        // A journal that was cut, or a copy in another one's place: whoever had more has all of this, and what comes behind it
        // may be other records.
        let tip = self.tip_lsn();
        let is_above = replicas.iter().any(|replica| replica.held > tip);
        for mut replica in replicas {
            replica.held = replica.held.min(tip);
            // It may have acknowledged more than was written down, and history may have gone up to there: what it really
            // has, it says when it is met.
            let held = replica.held.max(self.oldest().0);
            let pin = match replica.gave_up {
                Some(_) => None,
                None => Some(self.pin_all_above(held, &holder(&replica.address))?),
            };
            list.fed.push(Fed { replica, pin });
        }
        if is_above && let Err(error) = self.write_replicas(&list) {
            self.note_error(format!("what is held for replicas cannot be written down: {error}"));
        }
        Ok(())
    }

    /// The replicas that it feeds.
    pub fn replicas(&self) -> Vec<Replica> {
        let list = self.replicas.lock().expect("no panics under this lock");
        list.fed.iter().map(|fed| fed.replica.clone()).collect()
    }

    /// Feeds a replica at `HOST:PORT` from now on; its first state is held. Durable when this returns.
    /// `gives_way` as in [`Replica`].
    pub fn add_replica(&self, address: &str, limit: impl Into<RateLimit>, gives_way: bool) -> Result<()> {
        if address.is_empty() || address.len() > ADDRESS_BYTES_MAX || address.contains(char::is_whitespace) {
            let context = format!("{address:?} is not HOST:PORT");
            return Err(Error::new(Kind::Invalid, context));
        }
        self.refuse_if_aside()?;
        // Where all of its history is here, it goes from the beginning.
        let tip = self.tip_lsn();
        // What shows no state cannot be copied.
        let tip = self.course().gap_of(tip).map_or(tip, |gap| gap.behind);
        let held = if self.is_whole() { Lsn::ZERO } else { tip };
        self.settle(held)?;
        let pin = self.pin_all_above(held, &holder(address))?;
        let mut list = self.replicas.lock().expect("no panics under this lock");
        if list.fed.iter().any(|fed| fed.replica.address == address) {
            let context = format!("volume {} has a replica at {address} already", self.name());
            return Err(Error::new(Kind::Exists, context));
        }
        if list.fed.len() >= REPLICAS_MAX {
            let context = format!("volume {} has {REPLICAS_MAX} replicas, and no more go", self.name());
            return Err(Error::new(Kind::Refused, context));
        }
        let replica = Replica {
            address: address.to_owned(),
            held,
            is_acknowledged: false,
            complete: Timestamp(0),
            gave_up: None,
            limit: limit.into(),
            codec: Codec::default(),
            site: None,
            gives_way,
            coalesce_bytes: None,
        };
        list.fed.push(Fed { replica, pin: Some(pin) });
        let written = self.write_replicas(&list);
        if written.is_err() {
            list.fed.pop();
        }
        written
    }

    /// Feeds it no longer. Durable when this returns.
    pub fn remove_replica(&self, address: &str) -> Result<Replica> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(at) = list.fed.iter().position(|fed| fed.replica.address == address) else {
            let known: Vec<&str> = list.fed.iter().map(|fed| &fed.replica.address[..]).collect();
            let context = format!("volume {} has no replica at {address}", self.name());
            let error = Error::new(Kind::NotFound, context);
            return Err(match known.is_empty() {
                true => error.hint("it has none"),
                false => error.hint(format!("it has {}", known.join(", "))),
            });
        };
        let gone = list.fed.remove(at);
        match self.write_replicas(&list) {
            Ok(()) => Ok(gone.replica),
            Err(error) => {
                list.fed.insert(at, gone);
                Err(error)
            }
        }
    }

    /// A replica turns out to have everything through `lsn`, more or less than it was known to: that is held from here
    /// on. An error if it is not there any more, or the replica is not fed.
    pub fn hold_replica(&self, address: &str, lsn: Lsn) -> Result<()> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else {
            let context = format!("volume {} feeds no replica at {address}", self.name());
            return Err(Error::new(Kind::Closed, context));
        };
        fed.pin = Some(self.pin_all_above(lsn, &holder(address))?);
        let is_known =
            fed.replica.held == lsn && fed.replica.is_acknowledged && fed.replica.gave_up.is_none();
        fed.replica.held = lsn;
        fed.replica.is_acknowledged = true;
        fed.replica.gave_up = None;
        if is_known { Ok(()) } else { self.write_replicas(&list) }
    }

    /// The replica has nothing, or part of a first copy: gives the state that is held for it, which is copied there. One
    /// that had acknowledged something and lost it begins anew, from the newest durable state.
    pub fn hold_for_copy(&self, address: &str) -> Result<Lsn> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else {
            let context = format!("volume {} feeds no replica at {address}", self.name());
            return Err(Error::new(Kind::Closed, context));
        };
        if !fed.replica.is_acknowledged
            && fed.replica.gave_up.is_none()
            && self.can_be_copied(fed.replica.held)
            // Its state may be kept, and what follows it be gone: the log goes on from the end of the copy.
            && let Ok(pin) = self.pin_all_above(fed.replica.held, &holder(address))
        {
            fed.pin = Some(pin);
            return Ok(fed.replica.held);
        }
        self.hold_newest(&mut list, address)
    }

    /// The replica has something to compare a state with, and perhaps a copy of the state after `begun` that was broken off:
    /// gives the state that is held for it, that one if it still is, or the newest durable one.
    pub fn hold_for_reseed(&self, address: &str, begun: Option<Lsn>) -> Result<Lsn> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let is_held = |fed: &&mut Fed| {
            let replica = &fed.replica;
            replica.address == address
                && !replica.is_acknowledged
                && replica.gave_up.is_none()
                && Some(replica.held) == begun
                && self.can_be_copied(replica.held)
        };
        if let Some(fed) = list.fed.iter_mut().find(is_held)
            && let Ok(pin) = self.pin_all_above(fed.replica.held, &holder(address))
        {
            fed.pin = Some(pin);
            return Ok(fed.replica.held);
        }
        self.hold_newest(&mut list, address)
    }

    /// Whether a copy may begin with the state after this record. What was held may be gone: the journal was cut below it when
    /// another site went on, and what stands there by now may be no state.
    fn can_be_copied(&self, lsn: Lsn) -> bool {
        (self.base_point().lsn..=self.durable_lsn()).contains(&lsn) && self.course().gap_of(lsn).is_none()
    }

    fn hold_newest(&self, list: &mut ReplicaList, address: &str) -> Result<Lsn> {
        let durable = self.durable_lsn();
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else {
            let context = format!("volume {} feeds no replica at {address}", self.name());
            return Err(Error::new(Kind::Closed, context));
        };
        fed.pin = Some(self.pin_all_above(durable, &holder(address))?);
        fed.replica.held = durable;
        fed.replica.is_acknowledged = false;
        fed.replica.gave_up = None;
        self.write_replicas(list)?;
        Ok(durable)
    }

    /// A replica has everything through `lsn` durable, and everything up to `complete`. The pin moves at once; it is
    /// written down every ten seconds at most.
    pub fn note_acknowledged(&self, address: &str, lsn: Lsn, complete: Timestamp) -> Result<()> {
        let now_ns = self.shared.clock.elapsed_ns();
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let written_at_ns = list.written_at_ns;
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else { return Ok(()) };
        let replica = &mut fed.replica;
        replica.complete = replica.complete.max(complete);
        if lsn > replica.held {
            replica.held = lsn;
            // The new one first: at no time is nothing held.
            let pin = self.pin_all_above(lsn, &holder(address));
            fed.pin = pin.ok();
            if fed.pin.is_some() {
                // It was given up, and has caught up before anything went.
                fed.replica.gave_up = None;
            }
            if now_ns.saturating_sub(written_at_ns) >= WRITE_NS {
                list.written_at_ns = now_ns;
                return self.write_replicas(&list);
            }
        }
        Ok(())
    }

    /// Sends so fast at most from now on. Durable when this returns.
    pub fn limit_replica(&self, address: &str, limit: RateLimit) -> Result<()> {
        self.change_replica(address, |replica| replica.limit = limit)
    }

    /// Compresses what goes to it so from the next connection on. Durable when this returns.
    pub fn compress_replica(&self, address: &str, codec: Codec) -> Result<()> {
        self.change_replica(address, |replica| replica.codec = codec)
    }

    /// From the next connection on the newest state may go first where more of the journal than this waits, in bytes;
    /// `None`: never. Durable when this returns.
    pub fn coalesce_replica(&self, address: &str, bytes: Option<u64>) -> Result<()> {
        self.change_replica(address, |replica| replica.coalesce_bytes = bytes)
    }

    fn change_replica(&self, address: &str, change: impl FnOnce(&mut Replica)) -> Result<()> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(at) = list.fed.iter().position(|fed| fed.replica.address == address) else {
            let context = format!("volume {} has no replica at {address}", self.name());
            return Err(Error::new(Kind::NotFound, context));
        };
        let before = list.fed[at].replica.clone();
        change(&mut list.fed[at].replica);
        let written = self.write_replicas(&list);
        if written.is_err() {
            list.fed[at].replica = before;
        }
        written
    }

    /// The site at this address says who it is.
    pub fn note_replica_site(&self, address: &str, site: &str) -> Result<()> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else { return Ok(()) };
        if fed.replica.site.as_deref() == Some(site) {
            return Ok(());
        }
        fed.replica.site = Some(site.to_owned());
        self.write_replicas(&list)
    }

    /// Why nothing is sent to this replica for now, if so: after a failover the two sites have changed places. It stays in
    /// the list for the way back.
    pub fn replica_rests(&self, replica: &Replica) -> Option<String> {
        match self.role() {
            Role::Primary => None,
            Role::Fenced { by, .. } => Some(format!(
                "epoch {} begins elsewhere, and this volume is fenced by it: nothing is sent from here",
                by.0
            )),
            Role::Replica { .. } => {
                let source = self.fed_by()?;
                (replica.site.as_ref() == Some(&source)).then(|| {
                    format!(
                        "this volume is a replica of what {source} sends now: that is where it comes from"
                    )
                })
            }
        }
    }

    /// Nothing is held for a replica that this volume is fed by: it has what is here. When it is fed again, that is held
    /// from where it stands then.
    pub fn let_source_go(&self, address: &str) {
        if self.fed_by().is_none() {
            return;
        }
        let mut list = self.replicas.lock().expect("no panics under this lock");
        if let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) {
            fed.pin = None;
        }
    }

    /// What a replica needs is not kept for it any longer. Durable when this returns.
    pub fn give_up_replica(&self, address: &str, why: &str) -> Result<()> {
        let mut list = self.replicas.lock().expect("no panics under this lock");
        let Some(fed) = list.fed.iter_mut().find(|fed| fed.replica.address == address) else { return Ok(()) };
        if fed.replica.gave_up.is_some() {
            return Ok(());
        }
        fed.replica.gave_up = Some(why.to_owned());
        fed.pin = None;
        self.write_replicas(&list)
    }

    /// The journal is full, its oldest history may go, and something holds it: if that is a replica that gives way, it is
    /// given up. Whether one was.
    pub(super) fn give_up_for_room(&self) -> bool {
        if self.retention().at_cap != AtCap::DropOldest {
            return false;
        }
        let Some(oldest) = self.pins().first().map(|pin| pin.lsn) else { return false };
        let replicas = self.replicas();
        let gives_way = |replica: &&Replica| {
            replica.gives_way && replica.gave_up.is_none() && replica.held.max(self.oldest().0) <= oldest
        };
        let Some(replica) = replicas.iter().find(gives_way) else { return false };
        let why = format!("the journal was full, and it still needed what follows {:?}", replica.held);
        self.note_error(format!("{} is given up: {why}", holder(&replica.address)));
        self.give_up_replica(&replica.address, &why).is_ok()
    }

    /// Whether every record since LSN 1 is in the journal, on nothing but zeros.
    pub fn is_whole(&self) -> bool {
        self.base_point().lsn == Lsn::ZERO && self.is_blank_before() && self.oldest().0 == Lsn::ZERO
    }

    fn write_replicas(&self, list: &ReplicaList) -> Result<()> {
        let _using = self.use_files()?;
        let path = self.dir.join(REPLICAS_FILE);
        replace_file(&*self.shared.files, &path, &list.encode()).at(|| format!("writing {}", path.display()))
    }
}
