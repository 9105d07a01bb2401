//! Arguments of what concerns a second site.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `cdp replica`.
#[derive(Debug, Subcommand)]
pub enum ReplicaCommand {
    /// Keep a replica of a volume, or of each member of a group, at another site from now on
    #[command(after_help = "Example:\n  cdp replica add vm1 second-site.example:10811 --limit 20MiB")]
    Add {
        /// Which volume or group
        volume: String,
        /// The other site
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Send no more than so many bytes a second, always or at times of the day: 20MiB/s,
        /// 20MiB/s@08:00-18:00,100MiB/s
        #[arg(long, value_name = "LIMIT")]
        limit: Option<String>,
        /// Where the journal is full and its policy is `at cap drop-oldest`: give the replica up instead of refusing
        /// writes; `cdp status` says so then
        #[arg(long)]
        give_up_when_full: bool,
        /// How what goes there is compressed: zstd is smaller and takes more of the processor [default: lz4]
        #[arg(long, value_name = "lz4|zstd|none")]
        codec: Option<String>,
        /// For a thin line: where more than SIZE of the journal waits after an outage, send the newest state first, and
        /// fill history in behind it [SIZE: 64MiB where it is left out]
        #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "64MiB")]
        coalesce: Option<String>,
    },
    /// Say how the replicas are doing
    #[command(after_help = "Example:\n  cdp replica list --json")]
    List {
        /// Only those of this volume or group
        volume: Option<String>,
    },
    /// Change how fast a replica is fed, at once
    #[command(
        after_help = "Example:\n  cdp replica limit vm1 second-site.example:10811 20MiB/s@08:00-18:00,none"
    )]
    Limit {
        /// Which volume or group
        volume: String,
        /// The other site
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// So many bytes a second at most, always or at times of the day on this machine's clocks; none for no limit
        #[arg(value_name = "LIMIT")]
        limit: String,
    },
    /// Change how what goes to a replica is compressed, at once
    #[command(after_help = "Example:\n  cdp replica codec vm1 second-site.example:10811 zstd")]
    Codec {
        /// Which volume or group
        volume: String,
        /// The other site
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// lz4; zstd, which is smaller and takes more of the processor; or none
        #[arg(value_name = "lz4|zstd|none")]
        codec: String,
    },
    /// Change whether the newest state goes to a replica before the history that waits
    #[command(
        after_help = "Example:\n  cdp replica coalesce vm1 second-site.example:10811 64MiB\n  cdp replica coalesce vm1 second-site.example:10811 off"
    )]
    Coalesce {
        /// Which volume or group
        volume: String,
        /// The other site
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Where more than so much of the journal waits; off: never
        #[arg(value_name = "SIZE|off")]
        size: String,
    },
    /// At a second site: newest states that are shown while the history up to them is filled in
    #[command(after_help = "Example:\n  cdp replica newest vm1 --drop")]
    Newest {
        /// Only that of this volume
        volume: Option<String>,
        /// Let it go: only the history stays
        #[arg(long, requires = "volume")]
        drop: bool,
    },
    /// At a second site: first copies that are not whole, of volumes that are no replicas yet
    ///
    /// One that nobody goes on with for a week is removed by itself.
    #[command(after_help = "Example:\n  cdp replica copies --drop vm1")]
    Copies {
        /// Remove one first, by its name or id; it is refused while it is sent
        #[arg(long, value_name = "NAME|ID")]
        drop: Option<String>,
    },
    /// At a second site: let a replica be copied anew, comparing it with what is here, so that only what differs is sent
    #[command(after_help = "\
Examples:
  cdp replica reseed vm1                          it fell too far behind, and is to catch up
  cdp replica reseed vm1 --from /mnt/vm1.raw      the first copy came by hand
  cdp replica reseed vm1 --from vm1-carried
  cdp replica reseed                              what was asked for and is not done

The first site begins by itself, within ten seconds. Until the new copy is whole the old one stays what it is, and can be
promoted; then it is called VOL-until-LSN, with every instant it had, until somebody deletes it.")]
    Reseed {
        /// Which volume or group; without one, list what was asked for and is not done
        volume: Option<String>,
        /// Compare with a volume, a point of it, or a file (its name has a slash) [default: the volume as it is here]
        #[arg(long, value_name = "VOL[@POINT]|FILE", requires = "volume")]
        from: Option<String>,
        /// The site that sends it, as its certificate calls it [default: the one whose replica it is, or where it went on]
        #[arg(long, requires = "volume")]
        site: Option<String>,
        /// Take it back
        #[arg(long, requires = "volume", conflicts_with_all = ["from", "site"])]
        cancel: bool,
    },
    /// Send no more to a replica, and keep nothing for it; what it has stays there (`replica copies` there for half a copy)
    #[command(after_help = "Example:\n  cdp replica remove vm1 second-site.example:10811")]
    Remove {
        /// Which volume or group
        volume: String,
        /// The other site
        #[arg(value_name = "HOST:PORT")]
        address: String,
    },
}

/// `cdp pki`.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority
    #[command(after_help = "Example:\n  cdp pki init authority")]
    Init {
        /// Where; made if it is not there
        dir: PathBuf,
        /// What it is called in certificates
        #[arg(long, default_value = "cdp authority")]
        name: String,
    },
    /// Make what a site needs: its certificate, its key, and the authority's certificate
    #[command(after_help = "Example:\n  cdp pki issue authority site-b --to site-b-pki")]
    Issue {
        /// The authority
        authority: PathBuf,
        /// The site's name: small letters, digits and hyphens
        site: String,
        /// Where to put it; made if it is not there
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// It may send, and not receive
        #[arg(long, conflicts_with = "replica_only")]
        primary_only: bool,
        /// It may receive, and not send
        #[arg(long)]
        replica_only: bool,
        /// It is for a witness: it may vote, and neither send nor receive
        #[arg(long, conflicts_with_all = ["primary_only", "replica_only"])]
        witness: bool,
    },
}

/// `cdp failover`.
#[derive(Debug, Args)]
pub struct Failover {
    /// A volume or a group
    #[arg(value_name = "VOL|GROUP")]
    pub target: String,
    /// The point to go on from, as behind an `@`
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub to: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Also where members of the group have not arrived here
    #[arg(long)]
    pub partial: bool,
    /// Go on from the end of the history that is here, not from the newer state that is shown while it is filled in: that one goes
    #[arg(long)]
    pub give_up_newest: bool,
    /// Also at a site that was fenced: the other one has gone on, and what it wrote since becomes an orphan
    #[arg(long)]
    pub force: bool,
}

/// `cdp demote`.
#[derive(Debug, Args)]
pub struct Demote {
    /// A volume or a group
    #[arg(value_name = "VOL|GROUP")]
    pub target: String,
    /// Close its clients' connections
    #[arg(long)]
    pub force: bool,
    /// Wait until every replica has everything, or the one that --to names; at most so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub drain: Option<u64>,
    /// The replica that goes on
    #[arg(long, value_name = "HOST:PORT", requires = "drain")]
    pub to: Option<String>,
}

/// `cdp resync`.
#[derive(Debug, Args)]
pub struct Resync {
    /// A volume or a group
    #[arg(value_name = "VOL|GROUP")]
    pub target: String,
    /// Close its clients' connections
    #[arg(long)]
    pub force: bool,
    /// Only say where the histories part
    #[arg(long)]
    pub dry_run: bool,
    /// The site that goes on, as its certificate calls it: where several say so, or one that this site has nothing to do with
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
}
