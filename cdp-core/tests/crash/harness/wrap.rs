//! What stands between the store and the simulated disk. Nothing, in honest tests.

use std::sync::Arc;

use cdp_core::io::Files;
use cdp_core::io::sim::SimDisk;

/// Makes the files that the store gets to see of a disk.
pub type Wrap = Arc<dyn Fn(&SimDisk) -> Arc<dyn Files> + Send + Sync>;

/// The disk itself.
pub fn nothing() -> Wrap {
    Arc::new(|disk| Arc::new(disk.clone()))
}
