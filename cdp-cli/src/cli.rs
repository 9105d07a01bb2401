//! The command line as it is typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::report::EXIT_CODES;

/// A block device you can rewind: every write goes to a journal, and any instant can be opened.
#[derive(Debug, Parser)]
#[command(
    name = "cdp",
    version,
    after_help = "\
Begin with:
  cdp serve                    a volume at once, no configuration
  cdp demo                     what it is good for, in 15 seconds
  cdp help exit-codes          what the exit codes mean
  cdp help points              how to name an instant"
)]
pub struct Cli {
    #[command(flatten)]
    /// What every command takes.
    pub global: Global,
    /// Which command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Directory of the store [default: ~/.local/share/cdp]
    #[arg(long, value_name = "DIR", env = "CDP_STORE", global = true)]
    pub store: Option<PathBuf>,
    /// Configuration file [default: ~/.config/cdp/config.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "CDP_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not use io_uring, even where it is allowed
    #[arg(long, env = "CDP_NO_IO_URING", value_parser = clap::builder::FalseyValueParser::new(), global = true)]
    pub no_io_uring: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the volumes of a store over NBD
    #[command(after_help = "\
Examples:
  cdp serve
  cdp serve --store /srv/cdp --socket /run/cdp.sock --listen 127.0.0.1:10809
  nbdcopy -- [ cdp serve --stdio ] past.img

Without arguments it makes a store with a volume `disk` of 1 GiB where there is none, and serves it on a Unix
socket and on loopback. SIGTERM or Ctrl-C: what is in flight is answered, the journal is sealed.")]
    Serve(Serve),
    /// Make a volume, empty or from a raw image or a block device
    #[command(after_help = "Examples:\n  cdp create vm1 --size 10G\n  cdp create vm2 --from old-disk.img")]
    Create(Create),
    /// List the volumes, and the deleted ones
    #[command(after_help = "Example:\n  cdp list --json")]
    List,
    /// Say how the store is doing: a verdict in words, then figures
    #[command(
        after_help = "Example:\n  cdp status || page-somebody\n\nThe exit code is 3 when somebody should act."
    )]
    Status {
        /// Only this volume
        volume: Option<String>,
    },
    /// Make groups of volumes that are marked and looked at as of one instant
    #[command(after_help = "Example:\n  cdp group create db db-data db-wal\n  cdp mark db before-upgrade")]
    Group {
        /// What to do
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Set a marker on a volume or a group
    #[command(after_help = "\
Examples:
  cdp mark disk before-upgrade --note 'ticket 4711'
  cdp mark db nightly --app --quiesce hooks/postgresql --thaw hooks/postgresql

Hooks are run as `PROGRAM quiesce` and `PROGRAM thaw`, with CDP_STORE, CDP_TARGET and CDP_MARKER in their
environment. The thaw hook is run whatever happens: when the quiesce hook fails or takes too long, when the marker
cannot be set, on Ctrl-C.")]
    Mark(Mark),
    /// Move a volume to the trash, where it stays for 7 days
    #[command(after_help = "Example:\n  cdp delete vm1 --yes")]
    Delete(Delete),
    /// Bring a deleted volume back
    #[command(after_help = "Example:\n  cdp undelete vm1")]
    Undelete {
        /// Which volume
        volume: String,
    },
    /// Say what is missing on this machine, and the line that installs it
    #[command(after_help = "Example:\n  cdp doctor")]
    Doctor,
}

/// `cdp serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Unix socket for clients [default: nbd.sock in the store]
    #[arg(long, value_name = "PATH", env = "CDP_SOCKET")]
    pub socket: Option<PathBuf>,
    /// TCP address for clients [default: 127.0.0.1:10809, or another port if that is taken]
    #[arg(long, value_name = "ADDR:PORT", env = "CDP_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Allow an address that other machines reach: the traffic is not encrypted
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Serve one client on standard input and output
    #[arg(long, conflicts_with_all = ["socket", "listen"])]
    pub stdio: bool,
    /// Run PROGRAM when somebody should act; the reasons are its argument
    #[arg(long, value_name = "PROGRAM")]
    pub on_alarm: Option<PathBuf>,
}

/// `cdp create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Its name
    pub volume: String,
    /// Its size: 512M, 10G, 2T
    #[arg(long, required_unless_present = "from")]
    pub size: Option<String>,
    /// A raw file or a block device that nobody writes to
    #[arg(long, value_name = "FILE|BLOCKDEV")]
    pub from: Option<PathBuf>,
    /// How much the journal may take [default: all but a tenth of the filesystem]
    #[arg(long, value_name = "SIZE")]
    pub journal_cap: Option<String>,
    /// How often a marker is set while something is written; 0s for never [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub marker_interval: Option<String>,
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

/// `cdp delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Which volume
    pub volume: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Disconnect its clients first
    #[arg(long)]
    pub force: bool,
}

/// A page of `cdp help`, where `text` is one of these words.
pub fn help_page(topic: &str) -> Option<&'static str> {
    match topic {
        "exit-codes" => Some(EXIT_CODES),
        "points" => Some(POINTS),
        _ => None,
    }
}

/// What `cdp help points` says.
pub const POINTS: &str = "\
A point names an instant of a volume: `disk@POINT` as an export, or in commands. `GROUP@POINT` in commands.

  start                         as it was made
  latest                        as it is now
  -5m   -1h30m   90s ago        so much elapsed time ago (w d h m s ms)
  2026-11-21T10:00:00Z          an instant (RFC 3339 with a zone)
  2026-11-21 10:00:00           local time
  10:03   yesterday 10:03       local time of day
  NAME                          at a marker
  before:NAME                   right before it
  latest-app                    the newest application marker
  lsn:42                        after a record
  ns:1763719200000000000        Unix nanoseconds

`+rw` behind a point asks for a throw-away writable clone: `disk@-5m+rw`. In a URI a point is escaped
(`cdp log` prints both forms): nbd+unix:///disk@-5m?socket=…";
