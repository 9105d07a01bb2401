//! What all crash tests share: the naive model, workloads, the rig that drives a store on the simulated disk,
//! and the check of everything a store promises after a crash.

pub mod check;
pub mod model;
pub mod rig;
pub mod tally;
pub mod workload;
pub mod wrap;

pub use check::{Depth, Promise, crash_at_every_boundary};
pub use model::Model;
pub use rig::Rig;
pub use tally::Tally;
pub use workload::Workload;

/// What a test of promises gives: what was broken, in words.
pub type Outcome<T = ()> = Result<T, String>;

/// `Err` with a text, unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
