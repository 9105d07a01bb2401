//! How the command ends: exit codes, and errors as people and as programs read them.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use cdp_core::error::{Error, Kind};
use serde::{Deserialize, Serialize};

/// It worked.
pub const DONE: u8 = 0;
/// It did not.
pub const FAILED: u8 = 1;
/// The command line, the configuration or a name in it makes no sense.
pub const USAGE: u8 = 2;
/// Something is wrong with the store or a volume: somebody should act.
pub const ACT: u8 = 3;
/// Somebody else holds it, it is there already, it can only be read, or it is refused for safety.
pub const REFUSED: u8 = 4;
/// There is no such volume, marker or point.
pub const NOT_FOUND: u8 = 5;
/// Stopped by Ctrl-C or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// What `cdp help exit-codes` and every `--help` say.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done; status and verify: all is well
  1    failed: the storage, the network or a program that was run
  2    the command line or the configuration makes no sense
  3    somebody should act: damage was found, or a volume takes no writes
  4    refused: in use, locked, there already, takes no writes (a replica), or not safe
  5    there is no such volume, marker, point or file
  130  stopped by Ctrl-C";

/// The exit code for an error of this kind.
pub fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Invalid => USAGE,
        Kind::Damaged => ACT,
        Kind::Busy | Kind::Refused | Kind::Exists | Kind::ReadOnly => REFUSED,
        Kind::NotFound | Kind::OutOfRange => NOT_FOUND,
        Kind::Io | Kind::NoSpace | Kind::Closed => FAILED,
    }
}

/// An error as it travels through the control socket and into `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What to match on: the word for the error's kind.
    pub kind: String,
    /// What happened, and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

const KINDS: [(Kind, &str); 11] = [
    (Kind::Io, "io"),
    (Kind::NoSpace, "no-space"),
    (Kind::Damaged, "damaged"),
    (Kind::Refused, "refused"),
    (Kind::NotFound, "not-found"),
    (Kind::Exists, "exists"),
    (Kind::Busy, "busy"),
    (Kind::Invalid, "invalid"),
    (Kind::OutOfRange, "out-of-range"),
    (Kind::ReadOnly, "read-only"),
    (Kind::Closed, "closed"),
];

impl Report {
    /// Of an error.
    pub fn of(error: &Error) -> Report {
        let kind = KINDS.iter().find(|(kind, _)| *kind == error.kind()).map_or("io", |(_, word)| word);
        // Display puts the hint in brackets at the end; here it has a place of its own.
        let whole = error.to_string();
        let hint = error.hint_text().map(str::to_owned);
        let message = match &hint {
            Some(hint) => whole.strip_suffix(&format!(" ({hint})")).unwrap_or(&whole).to_owned(),
            None => whole,
        };
        Report { kind: kind.to_owned(), message, hint }
    }

    /// The error again, on the other side of a socket.
    pub fn into_error(self) -> Error {
        let kind = KINDS.iter().find(|(_, word)| *word == self.kind).map_or(Kind::Io, |(kind, _)| *kind);
        let error = Error::new(kind, self.message);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Prints an error: for people on stderr, with `json` as one object on stdout. Gives the exit code.
pub fn print_error(error: &Error, json: bool) -> u8 {
    let report = Report::of(error);
    if json {
        print_json(&serde_json::json!({ "error": report }));
    } else {
        let _ = writeln!(std::io::stderr(), "cdp: {}", report.message);
        if let Some(hint) = &report.hint {
            let _ = writeln!(std::io::stderr(), "  hint: {hint}");
        }
    }
    code_of(error.kind())
}

/// Why stdout could not be written, the first time.
static LOST: OnceLock<String> = OnceLock::new();

/// Prints a value as JSON on stdout, as [`print()`] does.
pub fn print_json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        print(&text);
    }
}

/// Prints lines on stdout. A reader that has gone is no reason to complain; what could not be written for another reason
/// is one, at the end: see [`ended`].
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = LOST.set(error.to_string());
    }
}

/// The exit code of a command that came to this: half of an answer, say a list of what changed on a full disk, is none.
pub fn ended(code: u8) -> u8 {
    let Some(error) = LOST.get() else { return code };
    say(&format!("cdp: writing the answer to standard output: {error}; what is there of it is not whole"));
    if code == DONE { FAILED } else { code }
}

/// Says something to the person, on stderr: never data.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    // Through the server or without it, a script must see the same exit code and the same words.
    #[test]
    fn an_error_survives_the_control_socket() {
        for (kind, _) in KINDS {
            let error = Error::new(kind, "what happened").hint("what to do");
            let text = serde_json::to_string(&Report::of(&error)).unwrap();
            let back = serde_json::from_str::<Report>(&text).unwrap().into_error();
            assert_eq!((back.kind(), back.to_string()), (kind, error.to_string()));
        }
    }
}
