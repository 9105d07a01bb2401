//! Whether a mounted filesystem is frozen: then what is on its device stays as it is.

use std::path::Path;
use std::time::Duration;

use cdp_core::error::{Error, Kind, Result};

use super::usage::Use;
use crate::host::command::{outcome, run};

/// Freezing writes everything out, of large memories too.
const PATIENCE: Duration = Duration::from_secs(60);

/// [`Kind::Refused`] unless this use of `path` is a mounted filesystem that is frozen. One that is not is frozen for a
/// moment: the kernel has no other way to tell.
pub fn check(path: &Path, used: &Use) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::new(Kind::Refused, format!("{} is in use: {}, {why}", path.display(), used.what))
            .hint("fsfreeze --freeze DIR, for each filesystem on it; or unmount them"))
    };
    let Some(dir) = &used.mount else { return refused("which cannot be frozen") };
    let tried = outcome("fsfreeze", &["--freeze".into(), dir.into()], PATIENCE)?;
    if tried.status.success() {
        run("fsfreeze", ["--unfreeze".as_ref(), dir.as_os_str()])?;
        return refused("and not frozen");
    }
    // Only what is frozen cannot be frozen.
    match tried.stderr.contains("busy") {
        true => Ok(()),
        false => refused(&format!("and it cannot be told whether it is frozen: {}", tried.stderr)),
    }
}
