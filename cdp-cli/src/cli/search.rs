//! Arguments of what asks a program about the past.

use std::path::PathBuf;

use clap::Args;

/// `cdp bisect`.
#[derive(Debug, Args)]
pub struct Bisect {
    /// Which volume
    pub volume: String,
    /// A point at which all was well
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub good: Option<String>,
    /// A later point at which it was not [default: latest]
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub bad: Option<String>,
    /// Give the program a mounted filesystem: CDP_DIR
    #[arg(long)]
    pub mount: bool,
    /// Give the program a block device: CDP_DEVICE
    #[arg(long)]
    pub device: bool,
    /// Which partition to mount
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// So many probes at the same time
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// Believe that the ends are good and bad without asking the program
    #[arg(long)]
    pub no_check: bool,
    /// Where the search is kept [default: in the store]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Go on with a search that was stopped
    #[arg(long = "continue", conflicts_with_all = ["good", "bad", "reset", "program"])]
    pub resume: bool,
    /// Forget the search that was stopped
    #[arg(long, conflicts_with_all = ["good", "bad", "program"])]
    pub reset: bool,
    /// The program that judges, with its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// `cdp prove`.
#[derive(Debug, Args)]
pub struct Prove {
    /// Which past
    #[arg(value_name = "VOL[@POINT]")]
    pub target: String,
    /// Give the program a mounted filesystem: CDP_DIR
    #[arg(long)]
    pub mount: bool,
    /// Give the program a block device: CDP_DEVICE
    #[arg(long)]
    pub device: bool,
    /// Which partition to mount
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// The program that judges, with its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}
