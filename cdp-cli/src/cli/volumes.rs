//! Arguments of what makes, changes and removes volumes and groups.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::image::Format;

/// `cdp create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Its name
    pub volume: String,
    /// Its size: 512M, 10G, 2T
    #[arg(long)]
    pub size: Option<String>,
    /// An image or a block device that nobody writes to
    #[arg(long, value_name = "FILE|BLOCKDEV")]
    pub from: Option<PathBuf>,
    /// Format of the image [default: what its first bytes say]
    #[arg(long, value_enum, requires = "from")]
    pub format: Option<Format>,
    /// The source is in use: copy it all the same, for `cdp import --again` later
    #[arg(long, requires = "from")]
    pub first_pass: bool,
    /// How much the journal may take [default: all but a tenth of the filesystem]
    #[arg(long, value_name = "SIZE")]
    pub journal_cap: Option<String>,
    /// How often a marker is set while something is written; 0s for never [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub marker_interval: Option<String>,
}

/// `cdp import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Which volume
    pub volume: String,
    /// An image or a block device that it was made from
    #[arg(long = "again", value_name = "FILE|BLOCKDEV")]
    pub from: PathBuf,
    /// Format of the image [default: what its first bytes say]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Filesystems on it may be mounted, if they are frozen
    #[arg(long)]
    pub frozen: bool,
    /// Name of the marker that is set at the end [default: mark- and the time]
    #[arg(long, value_name = "NAME")]
    pub mark: Option<String>,
}

/// `cdp group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Make a group
    #[command(after_help = "Example:\n  cdp group create db db-data db-wal")]
    Create(GroupMembers),
    /// Add volumes to a group
    #[command(after_help = "Example:\n  cdp group add db db-archive")]
    Add(GroupMembers),
    /// Take volumes out of a group; the volumes stay
    #[command(after_help = "Example:\n  cdp group remove db db-archive\n\nA group without members is gone.")]
    Remove(GroupMembers),
    /// Forget a group; its volumes stay
    #[command(after_help = "Example:\n  cdp group delete db")]
    Delete {
        /// The group
        group: String,
    },
    /// List the groups
    #[command(after_help = "Example:\n  cdp group list")]
    List,
}

/// A group and volumes.
#[derive(Debug, Args)]
pub struct GroupMembers {
    /// The group
    pub group: String,
    /// Its volumes
    #[arg(required = true)]
    pub volumes: Vec<String>,
}

/// `cdp set`.
#[derive(Debug, Args)]
pub struct Set {
    /// Which volume
    pub volume: String,
    /// How much the journal may take; `none` for all but a tenth of the filesystem
    #[arg(long, value_name = "SIZE|none")]
    pub journal_cap: String,
}

/// `cdp retention`.
#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Say how far back a volume goes, what holds it, and what it takes
    #[command(after_help = "Example:\n  cdp retention show vm1 --json")]
    Show {
        /// A volume, or a group: each of its members
        #[arg(value_name = "VOL|GROUP")]
        target: String,
    },
    /// Say what a policy would make of the history that there is: what stays, what goes, how far the space reaches
    #[command(after_help = "\
Examples:
  cdp retention simulate vm1 'every-write 24h, hourly 7d, daily 30d, at most 200GiB'
  cdp retention simulate vm1 --json

Nothing is changed. Without a policy it is the one that is set. What would stay is what upkeep would keep if nothing
more were written, with what is held now, and at the cap; the space is measured, compression on samples. How far the
space reaches is reckoned at the rate of this journal.")]
    Simulate {
        /// A volume, or a group: each of its members
        #[arg(value_name = "VOL|GROUP")]
        target: String,
        /// The policy; see `cdp retention --help`
        policy: Option<String>,
    },
    /// Change what is kept; what is not kept any more goes in the background
    #[command(
        after_help = "Examples:\n  cdp retention set vm1 'every-write 24h, at most 200GiB, at cap drop-oldest'\n  cdp retention set vm1 'every-write 24h, hourly 7d' --codec zstd"
    )]
    Set {
        /// A volume, or a group: each of its members
        #[arg(value_name = "VOL|GROUP")]
        target: String,
        /// The policy; see `cdp retention --help`
        policy: String,
        /// How history that is thinned is compressed: lz4, zstd or none; the same as a clause `codec zstd`
        #[arg(long, value_name = "CODEC")]
        codec: Option<String>,
    },
}

/// `cdp clone`.
#[derive(Debug, Args)]
pub struct CloneVolume {
    /// What it begins with
    #[arg(value_name = "VOL@POINT|GROUP@POINT")]
    pub source: String,
    /// Name of the clone; of a group's, the group NEW with the members NEW-MEMBER, all made or none
    #[arg(value_name = "NEW")]
    pub name: String,
    /// Copy its data at once, so that it stands on its own
    #[arg(long)]
    pub hydrate: bool,
}

/// `cdp grow`.
#[derive(Debug, Args)]
pub struct Grow {
    /// Which volume
    pub volume: String,
    /// Its new size: 20G, 2T
    pub size: String,
}

/// `cdp repair`.
#[derive(Debug, Args)]
pub struct Repair {
    /// Which volume
    pub volume: String,
    /// Go on without the records that are lost
    #[arg(long)]
    pub accept_loss: bool,
    /// Go on although nothing tells how far the journal was durable
    #[arg(long)]
    pub accept_mark_loss: bool,
}

/// `cdp delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Which volume
    pub volume: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Disconnect its clients first, and take it out of its groups
    #[arg(long)]
    pub force: bool,
    /// Remove what is deleted already for good, now, and give its space back
    #[arg(long, conflicts_with = "force")]
    pub purge: bool,
}
