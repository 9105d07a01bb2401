//! The simulated disk must be as bad as it says, and no worse: crash tests of everything else lean on it.

mod crash;
mod faults;
mod names;

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use super::SimDisk;
use crate::io::{File, Files};

/// A disk with one durable file `/file` of these bytes, and a handle to it.
fn disk_with(content: &[u8]) -> (SimDisk, Arc<dyn File>) {
    let disk = SimDisk::new(1);
    let file = disk.create(Path::new("/file")).unwrap();
    write(&*file, 0, content);
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(disk.unsynced(), 0);
    (disk, file)
}

fn write(file: &dyn File, offset: u64, data: &[u8]) {
    file.write_at(offset, &[IoSlice::new(data)]).unwrap();
}

fn read(file: &dyn File, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    file.read_at(offset, &mut buffer).unwrap();
    buffer
}
