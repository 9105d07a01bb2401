//! Throw-away clones that several connections share, each by its name, until somebody closes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cdp_core::error::{Error, Kind, Result};
use cdp_core::store::Store;
use cdp_core::view::ThrowAway;

use super::clones::CloneStatus;
use super::points::Target;
use super::status::utc;
use crate::units;

/// A clone that nobody has open is kept for so long: tools come and go, and whoever forgets to close one must not fill
/// the disk for ever.
pub const IDLE_TIME: Duration = Duration::from_secs(24 * 3600);
/// So many at a time.
const CLONES_MAX: usize = 64;

/// Volume and name.
type Key = (String, String);

/// Those of a store.
pub struct SharedClones {
    store: Arc<Store>,
    cap_bytes: u64,
    open: Mutex<BTreeMap<Key, Arc<Shared>>>,
}

struct Shared {
    device: Arc<ThrowAway>,
    key: Key,
    /// The point it is a clone of, as a text that means it for ever.
    point: String,
    /// The same as somebody typed it.
    asked: String,
    since: SystemTime,
    used: Mutex<Used>,
}

struct Used {
    connections: u64,
    /// When the last one went, or the clone was made.
    left: Instant,
}

/// A connection's hold on a clone.
pub struct Use {
    shared: Arc<Shared>,
}

impl Use {
    /// What is shared.
    pub fn device(&self) -> Arc<ThrowAway> {
        self.shared.device.clone()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut used = self.shared.used();
        used.connections -= 1;
        used.left = Instant::now();
    }
}

impl Shared {
    // Nothing under these locks can panic half way.
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stale(&self, now: Instant) -> bool {
        let used = self.used();
        used.connections == 0 && now.saturating_duration_since(used.left) >= IDLE_TIME
    }

    fn export(&self) -> String {
        format!("{}@{}+rw:{}", self.key.0, self.point, self.key.1)
    }

    /// Whether somebody who asks for a clone of `target` means this one: one of that state; or of a relative point that means
    /// another state by now, and is called as it was when the clone was made.
    fn check(&self, target: &Target) -> Result<()> {
        let is_same_words = target.resolved.relative && target.asked == self.asked;
        if is_same_words || target.resolved.lsn == self.device.view().lsn() {
            return Ok(());
        }
        let (volume, name) = &self.key;
        let context = format!(
            "the shared clone `{name}` of {volume} is one of {}, not of {}",
            self.point, target.resolved.absolute_name
        );
        Err(Error::new(Kind::Busy, context)
            .hint(format!("take another name, or close it first: cdp close {volume}+rw:{name}")))
    }
}

impl SharedClones {
    /// None yet. Each may hold `cap_bytes`.
    pub fn new(store: Arc<Store>, cap_bytes: u64) -> SharedClones {
        SharedClones { store, cap_bytes, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Shared>>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        open.retain(|_, shared| {
            let stale = shared.is_stale(now);
            if stale {
                tracing::info!(clone = shared.export(), "closed: nobody had it open for a day");
            }
            !stale
        });
        open
    }

    fn found(open: &BTreeMap<Key, Arc<Shared>>, target: &Target, name: &str) -> Result<Option<Arc<Shared>>> {
        let key = (target.volume.name().to_owned(), name.to_owned());
        // One of a volume that was deleted meanwhile, and made anew, is another one's.
        let same = |shared: &&Arc<Shared>| Arc::ptr_eq(shared.device.view().volume(), &target.volume);
        let Some(shared) = open.get(&key).filter(same) else { return Ok(None) };
        shared.check(target)?;
        Ok(Some(shared.clone()))
    }

    /// The absolute text of the point of the clone that is open under this name, if one is.
    pub fn point_of(&self, target: &Target, name: &str) -> Result<Option<String>> {
        Ok(SharedClones::found(&self.open(), target, name)?.map(|shared| shared.point.clone()))
    }

    /// The clone of this name, made if it is not open.
    pub fn attach(&self, target: Target, name: &str) -> Result<Use> {
        let mut open = self.open();
        let shared = match SharedClones::found(&open, &target, name)? {
            Some(shared) => shared,
            None => {
                if open.len() >= CLONES_MAX {
                    let context = format!("{CLONES_MAX} shared clones are open");
                    return Err(Error::new(Kind::Refused, context)
                        .hint("`cdp status` lists them, `cdp close` ends one"));
                }
                let key = (target.volume.name().to_owned(), name.to_owned());
                let view = target.view(&format!("the shared clone `{name}`"))?;
                let (store, random) = (&self.store, self.store.clock().random());
                let device =
                    ThrowAway::new(view, &**store.files(), &store.tmp_dir(), self.cap_bytes, random)?;
                let shared = Arc::new(Shared {
                    device: Arc::new(device),
                    key: key.clone(),
                    point: target.resolved.absolute_name,
                    asked: target.asked,
                    since: SystemTime::now(),
                    used: Mutex::new(Used { connections: 0, left: Instant::now() }),
                });
                open.insert(key, shared.clone());
                shared
            }
        };
        shared.used().connections += 1;
        Ok(Use { shared })
    }

    /// Forgets one; it is gone when its last connection is.
    pub fn close(&self, volume: &str, name: &str) {
        self.open().remove(&(volume.to_owned(), name.to_owned()));
    }

    /// Forgets those that nobody has come back to for [`IDLE_TIME`].
    pub fn close_stale(&self) {
        drop(self.open());
    }

    /// Forgets those of a volume that goes.
    pub fn close_all_of(&self, volume: &str) {
        self.open().retain(|key, _| key.0 != volume);
    }

    /// Those that are open.
    pub fn list(&self) -> Vec<CloneStatus> {
        self.open().values().map(|shared| shared.status()).collect()
    }
}

impl Shared {
    fn status(&self) -> CloneStatus {
        CloneStatus {
            volume: self.key.0.clone(),
            name: self.key.1.clone(),
            export: self.export(),
            lsn: self.device.view().lsn().0,
            since: utc(self.since),
            connections: self.used().connections,
            used_bytes: self.device.used_bytes(),
            cap_bytes: self.device.cap_bytes(),
        }
    }
}

/// One line of the list of exports.
pub fn describe(clone: &CloneStatus) -> String {
    format!(
        "shared throw-away clone, {} of {} used, connections: {}",
        units::size(clone.used_bytes),
        units::size(clone.cap_bytes),
        clone.connections
    )
}
