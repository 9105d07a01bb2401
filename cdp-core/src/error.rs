//! One error for the crate: what kind (to match on), what happened and where, why, and what to do.

use std::fmt;

/// What a caller can match on. Small and stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// The storage answered with an error.
    Io,
    /// The journal's cap or the filesystem's space is used up; the request had no effect.
    NoSpace,
    /// Stored bytes are not what was written.
    Damaged,
    /// Recovery will not guess: somebody has to decide.
    Refused,
    /// No such volume, marker, file.
    NotFound,
    /// It is there already.
    Exists,
    /// Somebody else holds it.
    Busy,
    /// The request makes no sense: bad name, bad size, bad point.
    Invalid,
    /// An offset behind the end of the device; a point outside of its history.
    OutOfRange,
    /// Writing to what can only be read.
    ReadOnly,
    /// The volume is closing or closed.
    Closed,
}

/// An error with its kind, its place, its cause and a hint for the person who reads it.
pub struct Error {
    kind: Kind,
    context: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind; `context` says what happened and where (volume, LSN, file).
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), hint: None, source: None }
    }

    /// An I/O error with its place; out-of-space keeps its own kind.
    pub fn io(source: std::io::Error, context: impl Into<String>) -> Error {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::Exists,
            std::io::ErrorKind::UnexpectedEof => Kind::Damaged,
            _ => Kind::Io,
        };
        Error { kind, context: context.into(), hint: None, source: Some(Box::new(source)) }
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// What to match on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What to do about it, if there is something.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The same error for another waiter: one failed sync answers many flushes.
    pub fn duplicate(&self) -> Error {
        let context = match &self.source {
            Some(source) => format!("{}: {source}", self.context),
            None => self.context.clone(),
        };
        Error { kind: self.kind, context, hint: self.hint.clone(), source: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds a place to an I/O result.
pub trait IoContext<T> {
    /// Turns the I/O error into ours; `context` says what was being done, and to which file.
    fn at(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io(error, context()))
    }
}
