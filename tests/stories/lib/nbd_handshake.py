"""The handshake as the protocol wants it, and every way to get it wrong."""

import struct
import time

import rawnbd as n
from checks import MIB, SIZE, check, same
from rawnbd import info_data, meta_data
from story import want


def handshake(connect):
    """Greeting, flags and options."""

    def greeting():
        with connect(flags=None) as c:
            same(c.hello[:16], n.HELLO)
            same(c.hello[16:], b"\0\3")

    def export_name(flags, zeroes):
        with connect(flags=flags) as c:
            c.send_option(n.EXPORT_NAME, b"disk")
            size, seen = struct.unpack(">QH", c.get(10))
            same(size, SIZE)
            same(seen & 1, 1)
            same(seen & n.F_DF, 0, "DF without structured replies:")
            if zeroes:
                same(c.get(124), bytes(124))
            c.flags = seen
            c.alive()

    def closed(flags=3, option=None, data=b"", length=None, raw=b""):
        with connect(flags=flags) as c:
            if option is not None:
                c.send_option(option, data, length)
            elif raw:
                c.put(raw)
            want(c.is_closed(), "still connected")
        with connect() as c:
            c.go().alive()

    def error(option, data, *kinds, prepare=(), length=None):
        with connect() as c:
            for number, with_data in prepare:
                same(c.final(number, with_data), n.ACK)
            same(c.final(option, data, length), set(kinds))
            c.go().alive()

    check("the greeting is fixed newstyle with NO_ZEROES", greeting)
    check("EXPORT_NAME without NO_ZEROES has 124 zeroes", export_name, 1, True)
    check("EXPORT_NAME with NO_ZEROES has none", export_name, 3, False)
    check("EXPORT_NAME of plain newstyle", export_name, 0, True)
    check("EXPORT_NAME of plain newstyle with NO_ZEROES", export_name, 2, False)
    check("unknown client flags end the session", closed, 7)
    check("unknown high client flags end the session", closed, 0x80000003)
    check("another option without fixed newstyle ends the session", closed, 0, n.LIST)
    check("EXPORT_NAME of an unknown export ends the session", closed, 3, n.EXPORT_NAME, b"nothing")
    check("EXPORT_NAME with NUL ends the session", closed, 3, n.EXPORT_NAME, b"disk\0")
    check("EXPORT_NAME too long ends the session", closed, 3, n.EXPORT_NAME, b"x" * 5000)
    check("EXPORT_NAME with a lying length ends the session", closed, 3, n.EXPORT_NAME, b"", 0xFFFFFFFF)
    check("a wrong option magic ends the session", closed, 3, None, b"", None, b"IHAVEOPX" + bytes(8))
    check("HTTP ends the session", closed, None, None, b"", None, b"GET / HTTP/1.1\r\n\r\n")
    check("an option of 4 GiB ends the session or is refused", closed, 3, n.INFO, b"", 0xFFFFFFFF)
    for number in (0, 4, 12, 13, 255, 0x7FFFFFFF, 0xFFFFFFFF):
        check(f"unknown option {number}: ERR_UNSUP", error, number, b"", n.ERR_UNSUP)
    check("PEEK_EXPORT (4) with data: ERR_UNSUP", error, 4, b"disk", n.ERR_UNSUP)
    check("unknown option with data is read past", error, 77, b"x" * 1000, n.ERR_UNSUP)
    check("unknown option with 1 MiB is read past", error, 77, b"x" * MIB, n.ERR_UNSUP, n.ERR_TOO_BIG)
    check("STARTTLS is refused", error, n.STARTTLS, b"", n.ERR_UNSUP, n.ERR_POLICY)
    check("STARTTLS with data is refused", error, n.STARTTLS, b"x", n.ERR_INVALID, n.ERR_UNSUP, n.ERR_POLICY)
    check("LIST with data: ERR_INVALID", error, n.LIST, b"x", n.ERR_INVALID)
    check("LIST with 1 MiB of data", error, n.LIST, b"x" * MIB, *n.ERRORS_OF_SIZE)
    check("STRUCTURED_REPLY with data: ERR_INVALID", error, n.STRUCTURED, b"x", n.ERR_INVALID)
    check("EXTENDED_HEADERS with data: ERR_INVALID", error, n.EXTENDED, b"x", n.ERR_INVALID)

    def agreed(first, second, *kinds):
        with connect() as c:
            same(c.final(first), n.ACK)
            same(c.final(second), set(kinds))
            c.mode = "extended" if n.EXTENDED in (first, second) else "structured"
            c.go().alive() if c.mode == "simple" else None
            replies = c.option(n.GO, info_data("disk"))
            same(replies[-1][0], n.ACK)
            c.alive()

    check("STRUCTURED_REPLY twice", agreed, n.STRUCTURED, n.STRUCTURED, n.ERR_INVALID, n.ACK)
    check("EXTENDED_HEADERS twice", agreed, n.EXTENDED, n.EXTENDED, n.ERR_INVALID, n.ACK)
    check("EXTENDED_HEADERS after STRUCTURED_REPLY", agreed, n.STRUCTURED, n.EXTENDED, n.ACK)
    check("STRUCTURED_REPLY after EXTENDED_HEADERS: ERR_EXT_HEADER_REQD", agreed, n.EXTENDED, n.STRUCTURED, n.ERR_EXT_REQD)

    def no_export_name_with_extended():
        with connect() as c:
            same(c.final(n.EXTENDED), n.ACK)
            c.send_option(n.EXPORT_NAME, b"disk")
            want(c.is_closed(), "still connected")

    check("EXPORT_NAME after EXTENDED_HEADERS ends the session", no_export_name_with_extended)

    for option, name in ((n.INFO, "INFO"), (n.GO, "GO")):
        good = info_data("disk")
        for data, what, kinds in (
            (info_data("nothing"), "of an unknown export", (n.ERR_UNKNOWN,)),
            (info_data("dis"), "of a prefix of a name", (n.ERR_UNKNOWN,)),
            (info_data("disk "), "of a name and a space", (n.ERR_UNKNOWN,)),
            (info_data("../disk"), "of a path", (n.ERR_UNKNOWN,)),
            (info_data("x" * 4096), "of a name of 4096 bytes", (n.ERR_UNKNOWN,)),
            (info_data("x" * 4097), "of a name of 4097 bytes", (*n.ERRORS_OF_SIZE, n.ERR_UNKNOWN)),
            (info_data("x" * 100_000), "of a name of 100,000 bytes", (*n.ERRORS_OF_SIZE, n.ERR_UNKNOWN)),
            (info_data("di\0sk"), "of a name with NUL", (n.ERR_INVALID, n.ERR_UNKNOWN)),
            (info_data(b"\xff\xfe"), "of a name that is not UTF-8", (n.ERR_INVALID, n.ERR_UNKNOWN)),
            (b"", "without data", (n.ERR_INVALID,)),
            (b"\0\0\0", "of 3 bytes", (n.ERR_INVALID,)),
            (good[:-1], "one byte short", (n.ERR_INVALID,)),
            (good + b"\0", "one byte long", (n.ERR_INVALID,)),
            (struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0", "with a lying name length", n.ERRORS_OF_SIZE),
            (struct.pack(">I", 5) + b"disk\0\0", "with a name length one too long", (n.ERR_INVALID,)),
            (good[:-2] + b"\xff\xff", "with a lying number of requests", (n.ERR_INVALID,)),
            (good[:-2] + b"\0\1\0", "with half a request", (n.ERR_INVALID,)),
        ):
            check(f"{name} {what}, then the next option", error, option, data, *kinds)
        check(f"{name} with 1 MiB of data", error, option, b"\0" * MIB, *n.ERRORS_OF_SIZE)

    def info(wanted, option=n.INFO, name="disk"):
        with connect() as c:
            replies = c.option(option, info_data(name, wanted))
            same(replies[-1][0], n.ACK)
            kinds = [struct.unpack(">H", data[:2])[0] for _, data in replies[:-1]]
            want(0 in kinds, f"no INFO_EXPORT in {kinds}")
            for kind, length in ((0, 12), (3, 14)):
                for _, data in replies[:-1]:
                    if data[:2] == struct.pack(">H", kind):
                        same(len(data), length)
            for kind in wanted:
                want(kind > 3 or kind == 2 or kind in kinds, f"no {kind} in {kinds}")
            if 3 in wanted:
                block = next(data for _, data in replies if data[:2] == b"\0\3")
                same(struct.unpack(">III", block[2:]), (1, 4096, 32 << 20))
            if 1 in wanted and name:
                same(next(data for _, data in replies if data[:2] == b"\0\1")[2:].decode(), name)
            if option == n.INFO:
                c.go().alive()
            else:
                c.alive()

    for wanted in ((), (0,), (1,), (2,), (3,), (0, 1, 2, 3), (3, 3, 3), (9, 0xFFFF), tuple(range(3000))):
        for option in (n.INFO, n.GO):
            what = wanted if len(wanted) < 9 else "3000 kinds"
            check(f"{'INFO' if option == n.INFO else 'GO'} asking for {what}", info, wanted, option)

    def empty_name():
        with connect() as c:
            replies = c.option(n.GO, info_data("", (1,)))
            want(replies[-1][0] in (n.ACK, n.ERR_UNKNOWN), hex(replies[-1][0]))
            if replies[-1][0] == n.ERR_UNKNOWN:
                want(replies[-1][1], "no text")
                c.go().alive()
            else:
                c.alive()

    check("the empty name is the default export or unknown", empty_name)

    def listed():
        with connect() as c:
            replies = c.option(n.LIST)
            same(replies[-1], (n.ACK, b""))
            names = []
            for kind, data in replies[:-1]:
                same(kind, n.SERVER)
                (length,) = struct.unpack(">I", data[:4])
                names.append(data[4:4 + length].decode())
                data[4 + length:].decode()
            for name in ("disk", "odd", "huge"):
                want(name in names, f"{name} is not in {names}")
            for name in names:
                same(c.final(n.INFO, info_data(name)), n.ACK, name)
            c.go().alive()

    check("LIST names every volume, and all that it names is there", listed)

    def abort(data=b"", wait=True):
        with connect() as c:
            c.send_option(n.ABORT, data)
            if wait:
                same(c.option_reply()[1], n.ACK)
                want(c.is_closed(), "still connected")

    check("ABORT is acknowledged and ends the session", abort)
    check("ABORT with data ends the session", abort, b"garbage")
    check("ABORT and gone", abort, b"", False)

    def many():
        with connect() as c:
            for _ in range(20):
                c.put(b"".join(n.OPT_MAGIC + struct.pack(">II", 1000 + i, 3) + b"abc" for i in range(200)))
                for i in range(200):
                    same(c.option_reply()[:2], (1000 + i, n.ERR_UNSUP))
            c.go().alive()

    def pipelined():
        # Options, GO and a first request in one packet.
        with connect() as c:
            go = info_data("disk")
            c.lens[7] = 512
            c.put(n.OPT_MAGIC + struct.pack(">II", 99, 0) + n.OPT_MAGIC + struct.pack(">II", n.GO, len(go)) + go
                  + struct.pack(">IHHQQI", n.REQUEST, 0, n.READ, 7, 0, 512))
            same(c.option_replies(99)[-1][0], n.ERR_UNSUP)
            same(c.option_replies(n.GO)[-1][0], n.ACK)
            same(len(c.reply().data), 512)

    def dripping():
        with connect(flags=None) as c:
            go = info_data("disk")
            for byte in struct.pack(">I", 3) + n.OPT_MAGIC + struct.pack(">II", n.GO, len(go)) + go:
                c.put(bytes([byte]))
                time.sleep(0.002)
            same(c.option_replies(n.GO)[-1][0], n.ACK)
            c.alive()

    check("4000 unknown options, each answered", many)
    check("options, GO and a request in one packet", pipelined)
    check("a handshake byte by byte", dripping)

    def contexts(option, queries, found, name="disk", mode=n.STRUCTURED):
        with connect() as c:
            same(c.final(mode), n.ACK)
            replies = c.option(option, meta_data(name, queries))
            same(replies[-1][0], n.ACK)
            same([data[4:] for kind, data in replies[:-1]], [b"base:allocation"] * found)
            c.mode = "structured" if mode == n.STRUCTURED else "extended"
            c.go(mode=None)
            c.alive()
            answer = c.ask(n.STATUS, 0, 4096)
            same(answer.error, 0 if option == n.SET_META and found else n.EINVAL)

    for option, name in ((n.LIST_META, "LIST"), (n.SET_META, "SET")):
        check(f"{name}_META_CONTEXT without structured replies: ERR_INVALID", error, option,
              meta_data("disk", ["base:allocation"]), n.ERR_INVALID)
        after = ((n.STRUCTURED, b""),)
        for mode in (n.STRUCTURED, n.EXTENDED):
            check(f"{name}_META_CONTEXT base:allocation, {mode}", contexts, option, ["base:allocation"], 1, "disk", mode)
        wild = 1 if option == n.LIST_META else 0
        check(f"{name}_META_CONTEXT without queries", contexts, option, [], wild)
        check(f"{name}_META_CONTEXT base:", contexts, option, ["base:"], wild)
        check(f"{name}_META_CONTEXT of other namespaces", contexts, option, ["qemu:dirty-bitmap:x", "x-y:z"], 0)
        check(f"{name}_META_CONTEXT base:other", contexts, option, ["base:other"], 0)
        check(f"{name}_META_CONTEXT of an empty query", contexts, option, [""], 0)
        check(f"{name}_META_CONTEXT of nothing with a colon", contexts, option, ["nocolon", ":", "base"], 0)
        check(f"{name}_META_CONTEXT twice the same", contexts, option, ["base:allocation", "base:allocation"], 1)
        check(f"{name}_META_CONTEXT of 1000 queries", contexts, option, [*(f"x:{i}" for i in range(999)), "base:allocation"], 1)

        def malformed(data, *kinds, option=option):
            with connect() as c:
                same(c.final(n.STRUCTURED), n.ACK)
                same(c.final(option, data), set(kinds))
                c.go(mode=None)
                c.mode = "structured"
                c.alive()

        good = meta_data("disk", ["base:allocation"])
        check(f"{name}_META_CONTEXT of an unknown export", malformed, meta_data("nothing", ["base:allocation"]), n.ERR_UNKNOWN)
        check(f"{name}_META_CONTEXT without data", malformed, b"", n.ERR_INVALID)
        check(f"{name}_META_CONTEXT one byte short", malformed, good[:-1], n.ERR_INVALID)
        check(f"{name}_META_CONTEXT one byte long", malformed, good + b"x", n.ERR_INVALID)
        check(f"{name}_META_CONTEXT with a lying count", malformed, good[:8] + b"\xff" * 4 + good[12:], n.ERR_INVALID)
        check(f"{name}_META_CONTEXT with a lying length", malformed, good[:12] + b"\xff" * 4 + good[16:], *n.ERRORS_OF_SIZE)
        check(f"{name}_META_CONTEXT of 1 MiB", malformed, b"\0" * MIB, *n.ERRORS_OF_SIZE)

    def selected_for_another(first, then, error_is):
        with connect() as c:
            same(c.final(n.STRUCTURED), n.ACK)
            for name, queries in first:
                c.option(n.SET_META, meta_data(name, queries))
            c.mode = "structured"
            c.go(then)
            same(c.ask(n.STATUS, 0, 4096).error, error_is)
            c.alive()

    ours = ("disk", ["base:allocation"])
    check("a context of another export is not selected", selected_for_another, [("odd", ours[1])], "disk", n.EINVAL)
    check("an empty SET_META_CONTEXT takes the selection back", selected_for_another, [ours, ("disk", [])], "disk", n.EINVAL)
    check("the last SET_META_CONTEXT counts", selected_for_another, [("odd", ours[1]), ours], "disk", 0)
    check("a failed SET_META_CONTEXT takes the selection back", selected_for_another, [ours, ("no", ours[1])], "disk", n.EINVAL)
