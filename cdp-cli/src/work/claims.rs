//! Sites that say to go on with a volume, and that nobody here has believed yet.

use cdp_core::volume::Volume;
use cdp_core::volume::epoch::Elsewhere;
use serde::{Deserialize, Serialize};

/// A site that says to have a newer epoch of a volume, and is refused here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its name, as its certificate says it.
    pub site: String,
    /// The epoch that it says to have.
    pub epoch: u32,
    /// Of a replica: whose records it takes.
    pub source: Option<String>,
}

impl Claim {
    /// Of a volume.
    pub fn all_of(volume: &Volume) -> Vec<Claim> {
        let source = volume.source().filter(|_| volume.is_replica()).map(|source| source.peer);
        let claim = |other: Elsewhere| Claim {
            epoch: other.epochs.newest().number.0,
            site: other.site,
            source: source.clone(),
        };
        volume.claims().into_iter().map(claim).collect()
    }

    /// What somebody should know of it, and do.
    pub fn reason(&self, name: &str) -> String {
        let Claim { site, epoch, source } = self;
        match source {
            Some(source) => format!(
                "ACT: {site} sends volume {name} in epoch {epoch}, and is refused: here is a replica of what {source} sends. If {site} goes on, `cdp resync {name}` makes it a replica of that."
            ),
            None => format!(
                "ACT: {site} says that volume {name} goes on there in epoch {epoch}, and is not believed: this site neither feeds it nor was fed by it. If it is so, `cdp resync {name} --site {site}` here."
            ),
        }
    }
}
