//! Bugs planted on purpose, so that the tests which have to find them can be tested themselves. Only with the
//! feature `planted-bugs`, which nothing enables by default; without it every question here is a constant `false`.

/// A bug that cannot be planted behind the file seam. For the thread that plants it only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Recovery cuts the log at the first mismatch, whatever says that it was durable.
    CutOnAnyMismatch,
    /// An instant means the record before the one it should.
    TimeOffByOne,
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug, or takes it out.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted here.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}
