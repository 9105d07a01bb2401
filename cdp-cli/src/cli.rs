//! The command line as it is typed: which commands there are. Their arguments stand below `cli/`.

mod files;
mod help;
mod past;
mod search;
mod sites;
mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
pub use files::{Cat, Cp, History, Ls};
pub use help::{BACKUPS, POINTS, help_page};
pub use past::{Attach, Detach, Diff, Log, Mark, Mount, Restore, Rollback, Undo};
pub use search::{Bisect, Prove};
pub use sites::{Demote, Failover, PkiCommand, ReplicaCommand, Resync};
pub use volumes::{
    CloneVolume, Create, Delete, GroupCommand, GroupMembers, Grow, Import, Repair, RetentionCommand, Set,
};

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
  cdp help points              how to name an instant
  cdp help backups             incremental backups with the tools you have"
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
    /// Make a volume, empty or from an image or a block device
    #[command(after_help = "\
Examples:
  cdp create vm1 --size 10G
  cdp create vm2 --from old-disk.img
  cdp create vm3 --from old-disk.qcow2      (also vmdk, vhdx; by qemu-nbd)

An image that refers to other files (a backing file) is refused.")]
    Create(Create),
    /// Bring a volume to what an image or a block device holds now, writing only what differs
    #[command(after_help = "\
Examples:
  cdp create web --from /dev/sdb --first-pass     (while the machine runs from it)
  cdp import web --again /dev/sdb                 (unmounted, or from a rescue system)
  fsfreeze --freeze /srv; cdp import web --again /dev/sdb --frozen; fsfreeze --unfreeze /srv

A source that somebody may write to is refused, and one that was written to meanwhile is an error: a marker is set only
on a state that the source had. One that ends before the volume's data does is refused, too. With --frozen its filesystems may be mounted, if they are frozen until it is done; not
the one that the store is on. Interrupted, it is run again: what is alike is not written a second time.")]
    Import(Import),
    /// Change a volume's settings, while it is served
    #[command(after_help = "Examples:\n  cdp set vm1 --journal-cap 200G\n  cdp set vm1 --journal-cap none")]
    Set(Set),
    /// Say or change how far back a volume goes
    #[command(after_help = "\
Examples:
  cdp retention show vm1
  cdp retention set vm1 'every-write 24h, named until removed'
  cdp retention set vm1 'at most 200GiB, at cap drop-oldest'
  cdp retention simulate vm1 'every-write 24h, hourly 7d, at most 200GiB'

A policy is clauses with commas between them. What is not said is kept for ever, and a full journal refuses writes.
  every-write 24h              the state after every write of so long a time (or `forever`)
  hourly 7d, every 10m for 2d  beyond it, the first marker of each interval; also minutely, daily, weekly
  named until removed          named markers; `named 30d` lets them go by themselves
  at most 200GiB               the journal; it goes by segments of 128 MiB
  at cap block|thin|drop-oldest   when it is full: refuse writes; keep less than every write of the oldest segments; or let
                               the oldest history go, named markers last
  codec lz4|zstd|none          how history that is thinned is compressed; zstd is smaller and slower

The oldest history that nothing keeps is folded into the base; between kept states history is thinned.
`cdp log` shows every move of the horizon, every stretch that was thinned, and why.")]
    Retention {
        /// What to do
        #[command(subcommand)]
        command: RetentionCommand,
    },
    /// Keep replicas of a volume at other sites, a little behind
    #[command(after_help = "\
Examples:
  cdp replica add vm1 second-site.example:10811
  cdp replica add vm1 second-site.example:10811 --limit 20MiB
  cdp replica list
  cdp replica remove vm1 second-site.example:10811

At the other site: `cdp serve --replica-listen 0.0.0.0:10811`. Both need certificates of one authority: see `cdp pki`.
Every record is sent once it is durable here: same LSNs, timestamps and markers. A link that is cut goes on where it
ended; until then the journal here keeps what is to be sent. The replica shows every instant of it, as `VOL@POINT`,
while it receives; it takes no writes.")]
    Replica {
        /// What to do
        #[command(subcommand)]
        command: ReplicaCommand,
    },
    /// Make certificates for replication: a small authority, and what each site needs
    #[command(after_help = "\
Example:
  cdp pki init authority
  cdp pki issue authority site-a --to site-a-pki
  cdp pki issue authority site-b --to site-b-pki

Then `site-a-pki` goes to the first site as STORE/pki (or wherever `cdp serve --pki DIR` says), `site-b-pki` to the
second one, and `authority` to a safe place: who has its key can make sites. A site may send and receive unless
--primary-only or --replica-only says otherwise. Who may send can append to replicas of its own volumes, and nothing
else: it can neither shorten nor delete what another site has, nor promote it.")]
    Pki {
        /// What to do
        #[command(subcommand)]
        command: PkiCommand,
    },
    /// Vote on which of two sites answers, as the third; holds no data
    #[command(after_help = crate::commands::witness::HELP)]
    Witness(crate::commands::witness::Witness),
    /// Let a named marker go
    #[command(after_help = "Example:\n  cdp unmark vm1 before-upgrade")]
    Unmark {
        /// Which volume or group
        #[arg(value_name = "VOL|GROUP")]
        target: String,
        /// Which marker
        name: String,
    },
    /// List the volumes, and the deleted ones
    #[command(after_help = "Example:\n  cdp list --json")]
    List,
    /// Say how the store is doing: a verdict in words, then figures
    #[command(
        after_help = "Example:\n  cdp status || page-somebody\n\nThe exit code is 3 when somebody should act."
    )]
    Status {
        /// Only this volume, or the members of this group
        #[arg(value_name = "VOL|GROUP")]
        target: Option<String>,
    },
    /// Make groups of volumes that are marked and looked at as of one instant
    #[command(
        after_help = "Example:\n  cdp group create db db-data db-wal\n  cdp mark db before-upgrade\n  cdp group remove db db-wal\n  cdp group delete db"
    )]
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
    /// Show what happened when, to find the instant right before it went wrong
    #[command(after_help = "\
Examples:
  cdp log disk
  cdp log disk --around 10:03 --step 1s
  cdp log disk --around lsn:4711 --records

Every row carries a point to copy: the state right before it, of a rollback the one that was left. The bars show what was written: `#` where nothing
was before, `o` over other data, `-` trimmed or zeroed. `%` is history that was thinned: what was written when is not known
any more, and the states that are left have rows.")]
    Log(Log),
    /// Close a throw-away clone that connections share
    #[command(after_help = "\
Example:
  qemu-img info nbd+unix:///disk@before:upgrade%2Brw:try?socket=…     (makes it, or opens it once more)
  cdp close disk+rw:try

What was written to it is gone. Otherwise it stays until the server ends, or nobody has had it open for a day.
`cdp status` lists those that are open.")]
    Close {
        /// Which; any export name that ends in `+rw:NAME` will do
        #[arg(value_name = "VOL+rw:NAME")]
        target: String,
        /// End its connections first
        #[arg(long)]
        force: bool,
    },
    /// List the extents that differ between two points
    #[command(after_help = "\
Examples:
  cdp diff disk@before:upgrade disk@latest
  cdp diff disk -1h -5m --json
  cdp diff disk@monday disk@tuesday --summary --content
  cdp diff disk -1h --files

From the index alone, whatever the two points are; nothing has to be declared beforehand. A block counts that was
written in between, also with the same bytes; with --content only if its bytes differ. With
--files, files are told apart by kind, size, time, permissions, owner and link; with --content by their bytes too.")]
    Diff(Diff),
    /// Make a volume a block device, and mount the filesystem on it
    #[command(after_help = "\
Examples:
  mkfs.ext4 \"$(cdp attach disk)\"; cdp detach disk
  cdp attach disk /mnt/disk

It survives a restart of the server: reads and writes wait. Needs root, FUSE and loop devices, or the kernel's NBD
client; `cdp doctor` tells. Without arguments: what is attached.")]
    Attach(Attach),
    /// Take an attached device away
    #[command(after_help = "Example:\n  cdp detach disk")]
    Detach(Detach),
    /// Mount a volume as it was
    #[command(after_help = "\
Examples:
  cdp mount disk@-5m /mnt/past
  cdp mount db@before:upgrade /mnt/past      (a group: a directory for each member)

A filesystem that was in use at that instant is mounted from a throw-away clone, so that its journal can be
replayed; nothing asks for fsck.")]
    Mount(Mount),
    /// Unmount what `cdp mount` mounted
    #[command(after_help = "Example:\n  cdp umount /mnt/past")]
    Umount(Detach),
    /// List the files of a volume as it was, without mounting it
    #[command(after_help = "\
Examples:
  cdp ls disk@-5m:/etc
  cdp ls -l disk@before:upgrade:/var/lib
  cdp ls disk@-5m:                 what is on the disk: partitions, filesystems
  cdp ls --partition 2 disk@-5m:/

Reads ext2/3/4 (replaying their journal in memory), FAT and NTFS, without root. Others are named, with the
`cdp mount` line to use. Without a point it is the state now. Exit code 5: no such file, point or volume.")]
    Ls(Ls),
    /// Print a file of a volume as it was
    #[command(after_help = "\
Examples:
  cdp cat disk@10:03:/etc/passwd
  cdp cat disk@before:upgrade:/var/lib/app.db >app.db

With --json: its entry, its BLAKE3 and, if it is text of at most 1 MiB, the text.")]
    Cat(Cat),
    /// Copy files out of a volume as it was
    #[command(after_help = "\
Examples:
  cdp cp disk@-5m:/etc/passwd .
  cdp cp -r disk@before:upgrade:/var/lib/app ./app-before

Times and permissions are kept, by root the owners too (--no-owners leaves them). Set-uid bits, extended attributes and
with them ACLs are not: `cdp mount` shows all of it to `cp -a`. Nothing is written outside of the target, whatever
the image says. Exit code 1: some files could not be copied (they are named); 4: it is there already.")]
    Cp(Cp),
    /// Show the versions of a file across markers
    #[command(after_help = "\
Examples:
  cdp history disk:/etc/passwd
  cdp history disk:/var/lib/app.db --since -2d --until before:upgrade

Versions are told apart by size and time of change; each is shown with the first marker at which it is seen, its
BLAKE3 and a point to copy. Markers are sampled and the borders between versions searched, so a year takes seconds;
a version that came and went between two samples is missed: --every looks at each marker. Exit code 5: the file is
at none of them.")]
    History(History),
    /// Write a volume as it was to an image or a block device
    #[command(after_help = "\
Examples:
  cdp restore disk@before:upgrade old-disk.img
  cdp restore disk@10:03 /dev/sdx --force
  cdp restore disk@-5m old-disk.qcow2        (also .vmdk, .vhdx; by qemu-img)
  cdp restore db@-5m DIRECTORY               (a group: DIRECTORY/VOL.img for each member)
  cdp restore disk@latest plain.img --follow
  cdp restore disk plain.img --finish

Sparse; read back and compared afterwards. A target that is in use (mounted, a loop device, or locked, as by QEMU and by
`--follow`) or too small is refused.

With --follow the target is kept a moment behind the volume, so that a machine can be started from it without cdp.
SIGTERM or Ctrl-C: it is brought to what was written last, and the instant is printed; the same command goes on later.
It may be killed at any moment, and its machine may lose power; but a target that was left so may be in the middle of
a step, and must not be used before `--finish`, which completes it (with --no-store also without the volume), prints the
instant and hands it over: cdp does not write to it any more. TARGET.cdp-follow says how far it is.")]
    Restore(Restore),
    /// Find the write that broke it, as `git bisect run` finds the commit
    #[command(after_help = "\
Examples:
  cdp bisect disk --good -2d --bad latest -- sh -c 'cdp cat \"disk@$CDP_POINT:/app.db\" | check-db'
  cdp bisect disk --good before:upgrade --bad now-broken --mount -- sh -c 'test -s \"$CDP_DIR/etc/passwd\"'
  cdp bisect disk --continue
  cdp bisect disk --reset

PROGRAM judges one state after the other: first at markers, then at single writes between two of them. It gets
CDP_VOLUME, CDP_POINT and CDP_URI (a throw-away clone over NBD; each connection gets its own), with --device
CDP_DEVICE, with --mount CDP_DIR as well. Its exit code means what it means to git: 0 good, 125 this state cannot
be judged, other codes below 128 bad, 128 and above end the search. A million markers take 22 probes.

Exit code 0: found; 1: narrowed down to records that could not be judged, or the program ended it; 2: the ends are
not as they were said to be; 130: stopped, and --continue goes on.")]
    Bisect(Bisect),
    /// Run a program on a state of the past, and keep what it says
    #[command(after_help = "\
Examples:
  cdp prove disk@latest-app --mount -- sh -c 'pg_amcheck-on \"$CDP_DIR\"'
  cdp prove disk -- sh -c 'cdp cat \"disk@$CDP_POINT:/app.db\" | check-db'
  cdp mount disk@latest-proven /mnt/past

PROGRAM gets what `cdp bisect` gives, and answers as there. A good state is `latest-proven` from then on,
kept as a named marker is until a newer one is proven, and `cdp status` shows its age. On a schedule, in the configuration, run by `cdp serve`:

  [volume.disk.prove]
  every = \"24h\"
  program = [\"/usr/local/bin/check-disk\"]
  point = \"latest-app\"      # default: latest
  form = \"mount\"            # or device; default: uri

Exit code 0: good; 3: bad; 1: it could not be judged, nothing is kept.")]
    Prove(Prove),
    /// Make a volume that begins as another was at an instant: writable, at once, nothing is copied
    #[command(after_help = "\
Examples:
  cdp clone disk@before:upgrade trial
  cdp clone disk@-5m standby --hydrate
  cdp clone shop@before:upgrade try       # a group: try-MEMBER for each, all or none

A clone is a volume like any other, with a history of its own; what it does not write it reads from its parent, whose
history from that record on is kept as long. Deleted, the parent stays hidden in the trash until no clone needs it.")]
    Clone(CloneVolume),
    /// Copy what a clone reads from its parent, and let go of that; it can be used meanwhile
    #[command(
        after_help = "Examples:\n  cdp hydrate trial\n  cdp hydrate try        # a group of clones: each member\n\n\
            Interrupted, it begins again when it is run again. A member of a group that cannot be copied does not keep the\n\
            others from it; which stand on their own then is said."
    )]
    Hydrate {
        /// Which clone, or which group of clones
        volume: String,
    },
    /// Set a volume or a group back to an instant, at once and whatever its size; it can be taken back
    #[command(after_help = "\
Examples:
  cdp rollback disk@before:upgrade
  cdp undo disk
  cdp rollback disk@-5m --force; cdp resume disk

It is a record like any other: every instant before it can still be looked at and gone back to. The state that is left
keeps the marker before-rollback-N. While clients have the volume open it is refused, for what they hold in their
caches is of another state; --force closes their connections and keeps the volume closed until `cdp resume`.")]
    Rollback(Rollback),
    /// Take the newest rollback back
    #[command(
        after_help = "Example:\n  cdp undo disk\n\nAn undo is a rollback too: a second one takes the first back."
    )]
    Undo(Undo),
    /// Open a volume or a group to clients again, after a rollback with --force
    #[command(after_help = "Example:\n  cdp resume disk")]
    Resume {
        /// A volume or a group
        #[arg(value_name = "VOL|GROUP")]
        target: String,
    },
    /// Make a replica, or all members of a group, the primary: clients can write here from then on
    #[command(after_help = "\
Examples:
  cdp failover disk --dry-run
  cdp failover shop
  cdp failover shop --to 2026-11-21T10:00:00Z

All members go on from one instant: the newest that each of them has completely, or the one that --to names. What came
later stays in their history. The other site, if it lives, is fenced as soon as it hears of this; two sites alone cannot
know, so make sure that nobody writes there. Planned: `cdp demote --drain` there, then this here; no write is lost.")]
    Failover(Failover),
    /// End writing to a volume or a group, so that another site can take over without losing a write
    #[command(after_help = "Example:\n  cdp demote shop --drain 30")]
    Demote(Demote),
    /// At the site that lost: keep what only it has as a volume of its own, and become a replica of the other
    #[command(after_help = "\
Examples:
  cdp resync disk --dry-run
  cdp resync disk
  cdp resync disk --site site-b

What was written here after the histories parted becomes disk-orphan-EPOCH, with its records, markers and instants; nothing is
thrown away. Then only what was written after the fork travels back.")]
    Resync(Resync),
    /// Make a volume larger; its past keeps the size it had
    #[command(after_help = "\
Example:
  cdp grow disk 20G

Clients see the new size when they connect again; the filesystem on it has to be told (resize2fs, xfs_growfs).")]
    Grow(Grow),
    /// Read everything back and check it
    #[command(after_help = "Example:\n  cdp verify disk\n\nThe exit code is 3 when something is damaged.")]
    Verify {
        /// Only this volume, or the members of this group
        #[arg(value_name = "VOL|GROUP")]
        target: Option<String>,
    },
    /// List the choices for a volume that takes no writes, or carry one out
    #[command(after_help = "\
Example:
  cdp repair disk                  says what is wrong, the choices and what each loses
  cdp repair disk --accept-loss    goes on without what is lost; the old files are kept

Only while no server runs.")]
    Repair(Repair),
    /// Move a volume to the trash, where it stays for 7 days
    #[command(after_help = "Examples:
  cdp delete vm1 --yes
  cdp delete vm1 --purge     removes the deleted volume for good, before its 7 days are over")]
    Delete(Delete),
    /// Bring a deleted volume back
    #[command(after_help = "Example:\n  cdp undelete vm1")]
    Undelete {
        /// Which volume
        volume: String,
    },
    /// Write a file, destroy it and rewind, in 15 seconds, without any client
    #[command(after_help = "Example:\n  cdp demo")]
    Demo,
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
    /// Run `PROGRAM promote` when volumes become primaries here, by whatever road
    #[arg(long, value_name = "PROGRAM")]
    pub on_promote: Option<PathBuf>,
    /// Run `PROGRAM demote` when volumes are primaries no more: demoted, or fenced by another site
    #[arg(long, value_name = "PROGRAM")]
    pub on_demote: Option<PathBuf>,
    /// Take replicas of other sites' volumes on this address
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "stdio")]
    pub replica_listen: Option<SocketAddr>,
    /// Certificates for replication [default: pki in the store]
    #[arg(long, value_name = "DIR")]
    pub pki: Option<PathBuf>,
}
