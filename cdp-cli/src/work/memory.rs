//! What the indexes of the store take of memory, of what was set for them.

use cdp_core::store::Store;
use serde::{Deserialize, Serialize};

use crate::units::size;

/// Memory for indexes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// What was set: `index_memory`.
    pub budget_bytes: u64,
    /// Cached pages: they give way to all others.
    pub pages_bytes: u64,
    /// The index of segments that have no run yet.
    pub parts_bytes: u64,
    /// What opened runs keep in memory.
    pub runs_bytes: u64,
    /// Names of markers, and kept states of thinned history: they stay.
    pub names_bytes: u64,
    /// Runs being merged.
    pub merges_bytes: u64,
}

impl MemoryStatus {
    /// Of a store, now.
    pub fn of(store: &Store) -> MemoryStatus {
        let (memory, used) = store.index_memory();
        MemoryStatus {
            budget_bytes: memory.budget_bytes() as u64,
            pages_bytes: memory.pages().memory_bytes() as u64,
            parts_bytes: used.parts_bytes as u64,
            runs_bytes: used.runs_bytes as u64,
            names_bytes: used.names_bytes as u64,
            merges_bytes: used.merges_bytes as u64,
        }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.pages_bytes + self.parts_bytes + self.runs_bytes + self.names_bytes + self.merges_bytes
    }

    /// As a line of `status`.
    pub fn text(&self) -> String {
        format!("{} of memory, of {}", size(self.total_bytes()), size(self.budget_bytes))
    }

    /// What to do where it takes more than was set.
    pub fn warning(&self) -> Option<String> {
        (self.total_bytes() > self.budget_bytes).then(|| {
            format!(
                "The index takes {} of memory, and `index_memory` is {}: names of markers take {}, segments that are \
                 written to {}, fences and filters {}, and none of these can be read again when it is needed. Let go of \
                 markers, or set `index_memory` higher.",
                size(self.total_bytes()),
                size(self.budget_bytes),
                size(self.names_bytes),
                size(self.parts_bytes),
                size(self.runs_bytes),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Whoever set a budget that cannot be kept must hear of it, and what takes it.
    #[test]
    fn says_so_when_more_is_taken_than_was_set() {
        let memory = MemoryStatus {
            budget_bytes: 32 << 20,
            pages_bytes: 4 << 20,
            names_bytes: 28 << 20,
            ..Default::default()
        };
        assert_eq!(memory.warning(), None);
        let warning = MemoryStatus { parts_bytes: 1 << 20, ..memory }.warning().unwrap();
        assert!(warning.contains("33 MiB") && warning.contains("28 MiB"), "{warning}");
    }
}
