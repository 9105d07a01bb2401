//! Arguments of what reaches files of the past.

use std::path::PathBuf;

use clap::Args;

/// `cdp ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Which files of which past
    #[arg(value_name = "VOL[@POINT]:[/PATH]")]
    pub target: String,
    /// With permissions, size and time
    #[arg(short, long)]
    pub long: bool,
    /// With all that is below
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Which partition to look into
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
}

/// `cdp cat`.
#[derive(Debug, Args)]
pub struct Cat {
    /// Which file of which past
    #[arg(value_name = "VOL[@POINT]:/PATH")]
    pub target: String,
    /// Which partition to look into
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
}

/// `cdp cp`.
#[derive(Debug, Args)]
pub struct Cp {
    /// Which file or directory of which past
    #[arg(value_name = "VOL[@POINT]:/PATH")]
    pub source: String,
    /// A file to make, or a directory to copy into
    pub target: PathBuf,
    /// Directories with all that is in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// As root: what is copied is root's, not whose it was
    #[arg(long)]
    pub no_owners: bool,
    /// Which partition to look into
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
}

/// `cdp history`.
#[derive(Debug, Args)]
pub struct History {
    /// Which file
    #[arg(value_name = "VOL:/PATH")]
    pub target: String,
    /// From this point on [default: start]
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// Up to this point [default: latest]
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub until: Option<String>,
    /// Look at every marker at which something has changed
    #[arg(long)]
    pub every: bool,
    /// Which partition to look into
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
}
