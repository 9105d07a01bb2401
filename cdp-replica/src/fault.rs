//! Why a connection ends.

use std::fmt;

use cdp_core::error::{Error, Kind};

/// What the other side, and whoever tries again, can go by. The numbers are those on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum FaultKind {
    /// Bytes that make no sense, or out of turn.
    Protocol = 1,
    /// No right to this volume, or it is no replica.
    Rights = 2,
    /// The histories do not join.
    Fork = 3,
    /// A higher epoch exists.
    Fenced = 4,
    /// What is needed is not there any more.
    Behind = 5,
    /// No space.
    NoSpace = 6,
    /// Storage failed, or the volume takes nothing.
    Storage = 7,
    /// Going down, or another connection took over.
    Closing = 8,
    /// What a payload was coded against is not there as it was here.
    Coding = 9,
}

impl FaultKind {
    /// The kind with this number; what is not known is taken for trouble that may pass.
    pub fn from_u16(number: u16) -> FaultKind {
        use FaultKind::*;
        [Protocol, Rights, Fork, Fenced, Behind, NoSpace, Storage, Closing, Coding]
            .into_iter()
            .find(|kind| *kind as u16 == number)
            .unwrap_or(Storage)
    }

    /// Whether trying again soon cannot help: somebody has to look.
    pub fn is_lasting(self) -> bool {
        matches!(self, FaultKind::Rights | FaultKind::Fork | FaultKind::Fenced | FaultKind::Behind)
    }
}

/// The end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What kind of end.
    pub kind: FaultKind,
    /// For people.
    pub text: String,
    /// The other side said so.
    pub from_peer: bool,
}

impl Fault {
    /// One that was found here.
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Fault {
        Fault { kind, text: text.into(), from_peer: false }
    }

    /// Bytes of the other side that make no sense.
    pub fn protocol(text: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Protocol, text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from_peer {
            f.write_str("the other side says: ")?;
        }
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let kind = match error.kind() {
            Kind::NoSpace => FaultKind::NoSpace,
            Kind::OutOfRange => FaultKind::Behind,
            Kind::Refused | Kind::Exists | Kind::NotFound => FaultKind::Rights,
            Kind::Invalid => FaultKind::Protocol,
            Kind::Closed | Kind::Busy => FaultKind::Closing,
            Kind::Io | Kind::Damaged | Kind::ReadOnly => FaultKind::Storage,
        };
        Fault::new(kind, error.to_string())
    }
}
