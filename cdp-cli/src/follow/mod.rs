//! Keeping a plain file or block device a moment behind a volume, so that it can be used without `cdp`.
//!
//! [`Follower`] owns the rules: what is written where, in which order, and what a target is worth after a crash. It
//! reads from a [`Source`], a volume of a running server or of a store that we opened ourselves, and writes to a
//! [`Disk`]. Beside the target stand two files: the *state* says which state of the volume the target holds, the *delta*
//! holds the next step whole before the first byte of it goes to the target.
//!
//! After the death of the follower or of the machine the target is in one of these states, and [`Follower::open`]
//! tells them apart by these two files alone:
//!
//! | state file | delta file | target |
//! |---|---|---|
//! | `copying` | – | no state of the volume; goes on from `offset`, what is before it is durable |
//! | `standing` at n | not whole, or not from n | state(n) |
//! | `standing` at n | whole, n → m | some blocks of state(n), some of state(m): written once more, whole, it is state(m) |
//! | `rewriting` | – | no state of the volume; compared with it as a whole |
//! | `handed-over` at n | – | state(n), and then whatever its new user made of it |

pub mod delta;
pub mod disk;
pub mod follower;
pub mod remote;
pub mod source;
pub mod state;

pub use disk::Disk;
pub use follower::{Follower, Trouble};
pub use source::Source;
