//! What the index may take, and when its runs are merged.

use crate::limits::{INDEX_BUDGET_BYTES, MERGE_RUNS, MERGE_STEP_ROWS};

/// How the indexes of a store are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexOptions {
    /// Memory for all indexes of the store, in bytes. Three quarters of it at most are for what is kept of runs' pages, and
    /// less where parts in memory, merging and thinning need it.
    pub budget_bytes: usize,
    /// So many neighbouring runs of one level are made one of the next, at least 2.
    pub merge_runs: usize,
    /// So many rows are merged in one step of upkeep, between which clients and sealing have their turn.
    pub merge_rows: u64,
}

impl Default for IndexOptions {
    fn default() -> IndexOptions {
        IndexOptions { budget_bytes: INDEX_BUDGET_BYTES, merge_runs: MERGE_RUNS, merge_rows: MERGE_STEP_ROWS }
    }
}
