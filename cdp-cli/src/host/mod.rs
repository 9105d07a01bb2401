//! What touches the machine around us: clients, FUSE, loop devices, mounts, and what is missing of them.
//!
//! Nothing here knows a store or a volume: callers hand in an NBD URI and a directory for the state. Everything
//! that is started outlives the command that started it and is found again through its state file.

pub mod attach;
pub mod attachment;
pub mod clients;
pub mod command;
pub mod device;
pub mod doctor;
pub mod keeper;
pub mod loopdev;
pub mod mounts;
pub mod notify;
pub mod partitions;
pub mod past;
pub mod process;
pub mod relay;
pub mod superblock;
