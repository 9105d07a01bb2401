//! Pages of `cdp help`.

use crate::report::EXIT_CODES;

/// A page of `cdp help`, where `text` is one of these words.
pub fn help_page(topic: &str) -> Option<&'static str> {
    match topic {
        "exit-codes" => Some(EXIT_CODES),
        "points" => Some(POINTS),
        "backups" => Some(BACKUPS),
        _ => None,
    }
}

/// What `cdp help backups` says.
pub const BACKUPS: &str = "\
Incremental backups by any client that knows QEMU's dirty bitmaps. Every point of a volume is the name of a bitmap: it
marks what changed between that point and the export. Nothing has to be declared beforehand.

  cdp mark disk monday; …; cdp mark disk tuesday
  nbdinfo --map=qemu:dirty-bitmap:monday \"$uri/disk@tuesday?socket=…\"
  qemu-img map --output=json --image-opts \\
    driver=nbd,server.type=unix,server.path=…,export=disk@tuesday,x-dirty-bitmap=qemu:dirty-bitmap:monday

`disk@tuesday+since:monday` offers that bitmap and no other, for clients that take the only one there is. In a URI it
is escaped: disk@tuesday%2Bsince:monday. In QEMU's map a changed extent is the one with \"data\": false.";

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
  latest-proven                 the newest state that `cdp prove` found good
  lsn:42                        after a record
  ns:1763719200000000000        Unix nanoseconds

`disk@POINT+since:POINT` is an export that tells its clients what changed since the second point (`cdp help backups`).
`+rw` behind a point asks for a throw-away writable clone of the connection's own: `disk@-5m+rw`; `+rw:NAME` for one
that all connections with this name share, until `cdp close`. In a URI a point is escaped
(`cdp log` prints both forms): nbd+unix:///disk@-5m?socket=…";
