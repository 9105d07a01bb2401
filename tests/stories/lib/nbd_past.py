"""The time-addressed exports, by a client of bytes."""

import struct
import time

import rawnbd as n
from checks import check, same
from rawnbd import info_data
from story import want


def past(connect, server):
    """The time-addressed exports."""
    server.cdp("create", "old", "--size", "16M")
    with connect().go("old") as c:
        same(c.write(0, b"1" * 8192), 0)
        server.cdp("mark", "old", "first", "--note", "the first")
        instant = time.time_ns()
        same(c.write(0, b"2" * 4096), 0)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(instant // 10**9)) + f".{instant % 10**9:09}Z"
    names = ("old@first", f"old@ns:{instant}", f"old@{stamp}", "old@before:first", "old@start", "old@latest", "old@-0s")

    def view(name):
        with connect().go(name, mode="structured") as c:
            same(c.size, 16 << 20)
            want(c.flags & n.F_READ_ONLY, "no READ_ONLY")
            same(c.flags & (n.F_TRIM | n.F_ZEROES), 0)
            for command in (n.WRITE, n.TRIM, n.ZEROES):
                answer = c.ask(command, 0, 4096, 0, b"w" * 4096 if command == n.WRITE else b"")
                same(answer.error, n.EPERM)
                want(answer.text, "no text")
            same(c.error(n.FLUSH), 0)
            same(c.error(n.STATUS, 0, 4096), 0)
            wanted = {"old@start": bytes(4096), "old@latest": b"2" * 4096, "old@-0s": b"2" * 4096}
            same(c.read(0, 4096), wanted.get(name, b"1" * 4096))

    for name in names:
        check(f"{name.split(':')[0]}: read-only, EPERM", view, name)

    def refused(name, kinds=(n.ERR_UNKNOWN, n.ERR_POLICY, n.ERR_INVALID)):
        with connect() as c:
            for option in (n.INFO, n.GO):
                kind, text = c.option(option, info_data(name))[-1]
                same(kind, {*kinds})
                want(len(text) > 8 and text.decode().isprintable(), f"text {text!r}")
            c.go().alive()

    for name in ("nothing@first", "old@", "old@nothing", "old@2999-01-01T00:00:00Z", "old@ns:1", "old@lsn:99999999", "old@lsn:-1",
                 "old@-", "old@+rw", "old@first+rw+rw", "old@@first", "old@-5", "old@25:00", "old@2026-13-01T00:00:00Z",
                 "old@before:", "old@ns:99999999999999999999999", "old@first ", "OLD@first", "@first", "old@-99999999999999999d",
                 "old@1999-01-01T00:00:00Z", "old@first@first", "old@latest-app", "old@" + "x" * 4000, "old@\u00e9\u4e2d"):
        check(f"no such point, with a text: {name[:40]}", refused, name)

    def clone():
        with connect().go("old@first+rw") as a, connect().go("old@first+rw") as b:
            same(a.flags & n.F_READ_ONLY, 0)
            same(a.write(100, b"c" * 5000, n.FUA), 0)
            same(a.read(100, 5000), b"c" * 5000)
            same(a.error(n.TRIM, 0, 16 << 20), 0)
            same(a.read(0, 8192), bytes(8192))
            same(a.error(n.FLUSH), 0)
            same(b.read(0, 8192), b"1" * 8192)
        with connect().go("old@first+rw") as c, connect().go("old") as live:
            same(c.read(0, 8192), b"1" * 8192)
            same(live.read(0, 8192), b"2" * 4096 + b"1" * 4096)

    check("+rw is private and discarded", clone)

    def canonical():
        with connect() as c:
            replies = c.option(n.INFO, info_data("old@-0s", (1, 2)))
            name = next(data[2:].decode() for _, data in replies if data[:2] == b"\0\1")
            want(name.startswith("old@") and "-0s" not in name, name)
            flags = struct.unpack(">H", replies[0][1][10:12])[0]
            same(flags & n.F_MULTI, 0, "multi-conn of a relative name:")
            replies = c.option(n.INFO, info_data(name))
            same(replies[-1][0], n.ACK)
            same(struct.unpack(">H", replies[0][1][10:12])[0] & n.F_MULTI, n.F_MULTI)

    check("INFO_NAME is the exact instant", canonical)
