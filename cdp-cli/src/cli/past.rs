//! Arguments of what marks an instant, looks at one, and goes back to one.

use std::path::PathBuf;

use clap::Args;

use crate::image::Format;

/// `cdp mark`.
#[derive(Debug, Args)]
pub struct Mark {
    /// A volume or a group
    #[arg(value_name = "VOL|GROUP")]
    pub target: String,
    /// Its name [default: mark- and the time]
    pub name: Option<String>,
    /// Free text
    #[arg(long, default_value = "")]
    pub note: String,
    /// A label; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Set it while the application is quiet: between the hooks
    #[arg(long)]
    pub app: bool,
    /// Makes the application quiet
    #[arg(long, value_name = "PROGRAM", requires = "app")]
    pub quiesce: Option<PathBuf>,
    /// Lets it go on; always run
    #[arg(long, value_name = "PROGRAM", requires = "app")]
    pub thaw: Option<PathBuf>,
    /// How long each hook may take
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub timeout: String,
}

/// `cdp log`.
#[derive(Debug, Args)]
pub struct Log {
    /// A volume or a group; with a point, what is around it
    #[arg(value_name = "VOL[@POINT]|GROUP[@POINT]")]
    pub target: String,
    /// Zoom to what is around this point
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub around: Option<String>,
    /// Length of an interval: 10ms, 1s, 5m
    #[arg(long, value_name = "TIME")]
    pub step: Option<String>,
    /// Single records
    #[arg(long)]
    pub records: bool,
    /// How many records on each side
    #[arg(long, value_name = "N", requires = "records", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub count: Option<u32>,
}

/// `cdp diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// A volume or a group; with its first point here, the second one follows as VOL@POINT
    #[arg(value_name = "VOL[@POINT]|GROUP[@POINT]")]
    pub first: String,
    /// The point to compare with, or the first of two
    #[arg(value_name = "VOL@POINT|POINT", allow_hyphen_values = true)]
    pub second: Option<String>,
    /// The second of two points; where it is left out, the newest state
    #[arg(value_name = "POINT", allow_hyphen_values = true)]
    pub third: Option<String>,
    /// Leave out blocks whose bytes are the same; with --files, read files that look the same
    #[arg(long)]
    pub content: bool,
    /// The files that were created, removed and changed, instead of extents (ext2/3/4, FAT, NTFS)
    #[arg(long)]
    pub files: bool,
    /// Which partition to look into
    #[arg(long, value_name = "N", requires = "files")]
    pub partition: Option<u32>,
    /// Only how much it is
    #[arg(long)]
    pub summary: bool,
}

/// `cdp attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Which volume
    pub volume: Option<String>,
    /// Where to mount the filesystem on it; without it there is only a device
    pub dir: Option<PathBuf>,
    /// Refuse writing
    #[arg(long)]
    pub read_only: bool,
    /// Which partition to mount
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// A mount option; may be given several times
    #[arg(short = 'o', long = "option", value_name = "OPTION")]
    pub options: Vec<String>,
}

/// `cdp detach` and `cdp umount`.
#[derive(Debug, Args)]
pub struct Detach {
    /// A name, a device, a directory or an id
    pub which: String,
    /// Wait for nothing; what was not written yet is lost
    #[arg(long)]
    pub force: bool,
}

/// `cdp mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// Which past
    #[arg(value_name = "VOL@POINT|GROUP@POINT")]
    pub target: String,
    /// Where
    pub dir: PathBuf,
    /// Writable; what is written is thrown away at umount
    #[arg(long)]
    pub rw: bool,
    /// Which partition to mount
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// A mount option; may be given several times
    #[arg(short = 'o', long = "option", value_name = "OPTION")]
    pub options: Vec<String>,
}

/// `cdp restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// Which past
    #[arg(value_name = "VOL@POINT|GROUP@POINT")]
    pub source: String,
    /// A file or a block device; for a group a directory
    pub target: PathBuf,
    /// Format of the file [default: by the end of its name, else raw]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// Keep the target a moment behind the volume until this is ended
    #[arg(long, conflicts_with_all = ["format", "finish"])]
    pub follow: bool,
    /// Bring a target that was followed to the point, or to the newest state, and hand it over
    #[arg(long, conflicts_with_all = ["format", "force"])]
    pub finish: bool,
    /// Only complete what was begun: the store is not at hand
    #[arg(long, requires = "finish")]
    pub no_store: bool,
    /// Between two looks at the volume
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "follow")]
    pub every: String,
    /// Where it is noted how far the target is [default: TARGET.cdp-follow; of a block device, in the store]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
}

/// `cdp rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// Which state
    #[arg(value_name = "VOL@POINT|GROUP@POINT")]
    pub target: String,
    /// Close its clients' connections, and keep it closed until `cdp resume`
    #[arg(long)]
    pub force: bool,
}

/// `cdp undo`.
#[derive(Debug, Args)]
pub struct Undo {
    /// A volume or a group
    #[arg(value_name = "VOL|GROUP")]
    pub target: String,
    /// Close its clients' connections, and keep it closed until `cdp resume`
    #[arg(long)]
    pub force: bool,
}
