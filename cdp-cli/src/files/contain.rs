//! The one place where a panic of a filesystem crate ends: the image was hostile or damaged, and the command lives.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use cdp_core::error::{Error, Kind, Result};

use super::disk::Fuel;
use super::{ByteSink, ENTRIES_MAX, Entry, Names, Tree};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// A panic that is caught says nothing on stderr: the error that comes of it is told.
fn quiet_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                before(info);
            }
        }));
    });
}

/// A filesystem behind a wall.
pub struct Contained {
    kind: String,
    // Gone after a panic: what it holds may be half done.
    tree: Option<Box<dyn Tree>>,
    fuel: Fuel,
}

impl Contained {
    /// Opens it, behind the wall too.
    pub fn new(kind: &str, fuel: Fuel, open: impl FnOnce() -> Result<Box<dyn Tree>>) -> Result<Contained> {
        let mut contained = Contained { kind: kind.to_owned(), tree: None, fuel };
        let tree = contained.guard(|_| open());
        contained.tree = Some(tree?);
        Ok(contained)
    }

    /// Which filesystem it is.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    fn guard<T>(&mut self, work: impl FnOnce(&mut Option<Box<dyn Tree>>) -> Result<T>) -> Result<T> {
        quiet_hook();
        self.fuel.refill();
        let mut tree = self.tree.take();
        CONTAINED.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut tree)));
        CONTAINED.set(false);
        match outcome {
            Ok(result) => {
                self.tree = tree;
                result
            }
            Err(_) => Err(self.damaged()),
        }
    }

    fn damaged(&self) -> Error {
        Error::new(Kind::Damaged, format!("the {} filesystem makes no sense", self.kind)).hint(
            "it was damaged at that instant: `cdp mount` lets the kernel try; an earlier point may be good",
        )
    }

    fn with_tree<T>(&mut self, work: impl FnOnce(&mut dyn Tree) -> Result<T>) -> Result<T> {
        if self.tree.is_none() {
            return Err(self.damaged());
        }
        let gone = self.damaged();
        self.guard(|tree| match tree {
            Some(tree) => work(&mut **tree),
            None => Err(gone),
        })
    }

    /// See [`Tree::entry`].
    pub fn entry(&mut self, path: &Names) -> Result<Entry> {
        self.with_tree(|tree| tree.entry(path))
    }

    /// The entries of a directory by name; too many are [`Kind::Invalid`].
    pub fn list(&mut self, path: &Names) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let fuel = self.fuel.clone();
        self.with_tree(|tree| {
            tree.list(path, &mut |entry| {
                fuel.refill();
                entries.push(entry);
                if entries.len() > ENTRIES_MAX {
                    let context = format!("{} has more than {ENTRIES_MAX} entries", super::shown(path));
                    return Err(Error::new(Kind::Invalid, context).hint("mount it: cdp mount"));
                }
                Ok(())
            })
        })?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// See [`Tree::read`]; what `take` does is outside of the wall's concern and must not panic.
    pub fn read(&mut self, path: &Names, take: &mut ByteSink<'_>) -> Result<()> {
        let fuel = self.fuel.clone();
        self.with_tree(|tree| {
            tree.read(path, &mut |bytes| {
                fuel.refill();
                take(bytes)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::EntrySink;

    struct Mine;

    impl Tree for Mine {
        fn entry(&mut self, _: &Names) -> Result<Entry> {
            panic!("out of bounds")
        }

        fn list(&mut self, _: &Names, take: &mut EntrySink<'_>) -> Result<()> {
            let entry = Entry {
                name: b"x".to_vec(),
                kind: super::super::EntryKind::File,
                bytes: 0,
                mode: None,
                owner: None,
                modified_ns: None,
            };
            loop {
                take(entry.clone())?;
            }
        }

        fn read(&mut self, _: &Names, _: &mut ByteSink<'_>) -> Result<()> {
            Ok(())
        }
    }

    // One bad image in a script over a thousand points must be one error, not the end of the script.
    #[test]
    fn a_panic_is_an_error_and_the_tree_is_not_used_again() {
        let mut tree = Contained::new("ext4", Fuel::default(), || Ok(Box::new(Mine))).unwrap();
        assert_eq!(tree.list(&[]).unwrap_err().kind(), Kind::Invalid, "endless directories end");
        tree.read(&[], &mut |_| Ok(())).unwrap();
        assert_eq!(tree.entry(&[]).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(tree.read(&[], &mut |_| Ok(())).unwrap_err().kind(), Kind::Damaged);
    }
}
