//! The keys of the open segment: found by hash, because inserts and single lookups are many, and put in order
//! only when somebody walks them.

use crate::format::run::{Key, bloom_hash};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// A map from key to `V` that never forgets a key.
#[derive(Debug)]
pub(super) struct Keys<V> {
    map: HashMap<Key, V, KeyHash>,
    /// All keys, as they came.
    added: Vec<Key>,
    /// The first so many of `added`, sorted.
    sorted: Mutex<Arc<Vec<Key>>>,
}

impl<V> Keys<V> {
    pub fn new() -> Keys<V> {
        // A client chooses its block numbers, but not the seed that they are hashed with.
        let hash = KeyHash { seed: RandomState::new().hash_one(0u8) };
        Keys { map: HashMap::with_hasher(hash), added: Vec::new(), sorted: Mutex::default() }
    }

    pub fn len(&self) -> usize {
        self.added.len()
    }

    pub fn get(&self, key: Key) -> Option<&V> {
        self.map.get(&key)
    }

    /// The value at `key`, if there is one; else puts `value` there.
    pub fn get_or_insert(&mut self, key: Key, value: V) -> Option<&mut V> {
        use std::collections::hash_map::Entry;
        match self.map.entry(key) {
            Entry::Occupied(occupied) => Some(occupied.into_mut()),
            Entry::Vacant(vacant) => {
                vacant.insert(value);
                self.added.push(key);
                None
            }
        }
    }

    /// All keys in order. Costs a sort of those that came since the last call, and a merge.
    pub fn sorted(&self) -> Arc<Vec<Key>> {
        // A panic can leave behind no half of a merge: it would have to come from comparing numbers.
        let mut sorted = self.sorted.lock().unwrap_or_else(PoisonError::into_inner);
        if sorted.len() < self.added.len() {
            let all = Arc::make_mut(&mut sorted);
            let from = all.len();
            all.extend_from_slice(&self.added[from..]);
            all[from..].sort_unstable();
            // Two sorted stretches: the stable sort sees them and only merges.
            all.sort();
        }
        sorted.clone()
    }

    /// About how much memory it takes, in bytes, without what the values hold.
    pub fn memory_bytes(&self) -> usize {
        // The map keeps an eighth of its places free and a byte beside each.
        let places = self.map.capacity() * 8 / 7;
        places * (size_of::<(Key, V)>() + 1) + (self.added.capacity() + self.added.len()) * size_of::<Key>()
    }
}

/// Hashes a key's number.
#[derive(Clone, Copy, Debug)]
struct KeyHash {
    seed: u64,
}

struct KeyHasher(u64);

impl BuildHasher for KeyHash {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.seed)
    }
}

impl Hasher for KeyHasher {
    fn write_u64(&mut self, number: u64) {
        self.0 = bloom_hash(number ^ self.0);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
