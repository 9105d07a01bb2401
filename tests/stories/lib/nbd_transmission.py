"""The transmission phase: every command, in every mode, at every edge of a device."""

import random
import struct
import time

import rawnbd as n
from checks import HUGE, MIB, ODD, SIZE, check, same
from rawnbd import Closed
from story import want


def transmission(connect, mode):
    """Requests of every kind in one mode, at every edge."""

    def go(name="disk"):
        return connect().go(name, mode=mode if mode != "simple" else None)

    def case(name, action, *arguments):
        check(f"{mode}: {name}", action, *arguments)

    def flags():
        with go() as c:
            all_of = n.F_FLUSH | n.F_FUA | n.F_TRIM | n.F_ZEROES | n.F_MULTI | n.F_CACHE | n.F_FAST
            same(c.flags & all_of, all_of)
            same(c.flags & n.F_READ_ONLY, 0)
            same(bool(c.flags & n.F_DF), mode != "simple")

    case("transmission flags", flags)

    def patterns():
        with go() as c:
            for offset, length in ((0, 1), (1, 1), (511, 2), (4095, 2), (4096, 4096), (8191, 4098), (12345, 70001), (SIZE - 1, 1), (SIZE - 5000, 5000)):
                data = random.randbytes(length)
                around = c.read(max(0, offset - 7), min(7, offset))
                same(c.write(offset, data), 0)
                want(c.read(offset, length) == data, f"{length} at {offset}: something else comes back")
                want(c.read(max(0, offset - 7), min(7, offset)) == around, "the bytes before it changed")

    case("unaligned writes come back, and nothing around them changes", patterns)

    def edges(name, size):
        top = 1 << 64
        with go(name) as c:
            block = b"e" * 512
            same(c.write(size - 512, block), 0)
            same(c.read(size - 512, 512), block)
            same(c.read(size - 1, 1), b"e")
            for offset, length in ((size - 511, 512), (size, 512), (size, 1), (size + 4096, 512), (top - 1, 1), (top - 512, 512), (top - 256, 512), (top >> 1, 512)):
                where = f"{length} at {offset}:"
                same(c.error(n.READ, offset, length), n.EINVAL, f"read {where}")
                same(c.write(offset, b"x" * length), n.ENOSPC, f"write {where}")
                same(c.error(n.TRIM, offset, length), {n.EINVAL, n.ENOSPC}, f"trim {where}")
                same(c.error(n.ZEROES, offset, length), n.ENOSPC, f"zeroes {where}")
                same(c.error(n.CACHE, offset, length), n.EINVAL, f"cache {where}")
                same(c.error(n.STATUS, offset, length), n.EINVAL, f"status {where}")
            same(c.read(size - 512, 512), block)
            for command in (n.TRIM, n.ZEROES):
                same(c.error(command, 0, 0xFFFFFFFF), 0 if size >= 1 << 32 else {n.EINVAL, n.ENOSPC})

    for name, size in (("disk", SIZE), ("odd", ODD), ("huge", HUGE)):
        case(f"the end of `{name}`", edges, name, size)

    def zero_length(command):
        with go() as c:
            for offset in (0, 5, SIZE - 1, SIZE):
                answer = c.ask(command, offset, 0)
                same(answer.error, {0, n.EINVAL})
                same(answer.data, b"")
                if mode != "simple" and command == n.READ:
                    want(1 not in answer.chunks, "an empty data chunk")
            c.alive()

    for command, name in ((n.READ, "read"), (n.WRITE, "write"), (n.TRIM, "trim"), (n.ZEROES, "zeroes"), (n.CACHE, "cache"), (n.STATUS, "status")):
        case(f"{name} of no bytes", zero_length, command)

    def large(length):
        with go("huge") as c:
            data = random.randbytes(MIB) * (length >> 20)
            same(c.write(3 << 30, data), 0)
            want(c.read(3 << 30, length) == data, "something else comes back")
            if mode != "simple":
                answer = c.ask(n.READ, 3 << 30, length, n.DF)
                if answer.error:
                    same(answer.error, n.EOVERFLOW)
                else:
                    want(answer.chunks == [1] and answer.data == data, "not in one piece")

    for mib in (32, 64):
        case(f"{mib} MiB in one request", large, mib << 20)

    def read_too_large(length):
        with go("huge") as c:
            same(c.error(n.READ, 0, length), {n.EINVAL, n.ENOMEM, n.EOVERFLOW})
            c.alive()

    def write_too_large(length):
        with go("huge") as c:
            c.socket.settimeout(5)
            try:
                cookie = c.send(n.WRITE, 0, length)
                for _ in range(length >> 20):
                    c.put(bytes(MIB))
                answer = c.reply()
            except (Closed, TimeoutError) as error:
                want(isinstance(error, Closed), "neither answered nor disconnected")
            else:
                same((answer.cookie, answer.error), {(cookie, n.EINVAL), (cookie, n.ENOMEM)})
                if mode != "extended":
                    c.alive()
        with go() as c:
            c.alive()

    case("a read of 65 MiB is refused, in step", read_too_large, 65 << 20)
    case("a read of 4 GiB is refused, in step", read_too_large, 0xFFFFFFFF)
    case("a write of 65 MiB is refused, in step or the end", write_too_large, 65 << 20)
    if mode == "extended":
        case("a write of 200 MiB is refused or the end", write_too_large, 200 << 20)

    def payload_consumed():
        with go() as c:
            before = c.read(0, MIB)
            for length in (1, 511, 4096, 65537, MIB + 3, 8 * MIB):
                same(c.write(SIZE, b"%" * length), n.ENOSPC)
                same(c.error(n.WRITE, 0, length, 1 << 12, b"%" * length), n.EINVAL)
                c.alive()
            want(c.read(0, MIB) == before, "a refused write has an effect")

    case("the payload of a refused write is read past", payload_consumed)

    def fua():
        with go() as c:
            same(c.write(4096, b"f" * 4096, n.FUA), 0)
            same(c.error(n.TRIM, 4096, 4096, n.FUA), 0)
            same(c.error(n.ZEROES, 4096, 4096, n.FUA), 0)
            same(c.error(n.ZEROES, 4096, 4096, n.FUA | n.NO_HOLE), 0)
            same(c.error(n.FLUSH, 0, 0, n.FUA), {0, n.EINVAL})
            same(c.error(n.READ, 0, 512, n.FUA), {0, n.EINVAL})
            same(c.error(n.CACHE, 0, 512, n.FUA), {0, n.EINVAL})
            same(c.error(n.STATUS, 0, 512, n.FUA), {0, n.EINVAL})
            same(c.write(0, b"", n.FUA), {0, n.EINVAL})
            same(c.error(n.FLUSH), 0)
            c.alive()

    case("FUA with every command", fua)

    def odd_flags():
        with go() as c:
            for bit in range(16):
                flag = 1 << bit
                known = {n.READ: (n.FUA, n.DF), n.WRITE: (n.FUA, n.PAYLOAD), n.FLUSH: (n.FUA,), n.TRIM: (n.FUA,), n.CACHE: (n.FUA,),
                         n.ZEROES: (n.FUA, n.NO_HOLE, n.FAST_ZERO), n.STATUS: (n.FUA, n.REQ_ONE)}
                for command, allowed in known.items():
                    if flag in allowed or (flag == n.PAYLOAD and mode == "extended"):
                        continue
                    length = 0 if command == n.FLUSH else 512
                    payload = b"!" * 512 if command == n.WRITE else b""
                    same(c.error(command, 0, length, flag, payload), n.EINVAL, f"command {command} flag {flag}:")
            c.alive()
            want(c.read(0, 512) != b"!" * 512, "a refused write has an effect")

    case("unknown flags: EINVAL, in step", odd_flags)

    def unknown_commands():
        with go() as c:
            for command in (8, 9, 100, 0x7FFF, 0xFFFF):
                same(c.error(command, 0, 512), n.EINVAL)
                same(c.error(command, 0, 0), n.EINVAL)
            c.alive()

    case("unknown commands: EINVAL, in step", unknown_commands)

    def wrong_magic():
        with go() as c:
            try:
                c.send(n.READ, 0, 512, magic=0x12345678)
                want(c.is_closed(), "still connected")
            except Closed:
                pass
        with go() as c:
            c.alive()

    case("a wrong request magic ends the session", wrong_magic)

    def df():
        with go() as c:
            error = c.error(n.READ, 0, 65536, n.DF)
            if mode == "simple":
                same(error, {n.EINVAL, 0})
            else:
                same(error, 0)
                same(c.write(0, b"d" * 4096), 0)
                same(c.error(n.TRIM, 4096, 65536), 0)
                answer = c.ask(n.READ, 0, 69632, n.DF)
                same((answer.chunks, answer.data), ([1], b"d" * 4096 + bytes(65536)))
            c.alive()

    case("DF", df)

    def zeroes():
        with go() as c:
            for flag in (0, n.NO_HOLE, n.FAST_ZERO, n.FAST_ZERO | n.NO_HOLE, n.FUA):
                same(c.write(8192, b"z" * 12288), 0)
                same(c.error(n.ZEROES, 9000, 5000, flag), {0, n.ENOTSUP} if flag & n.FAST_ZERO else 0)
                want(c.read(8192, 12288) == b"z" * 808 + bytes(5000) + b"z" * 6480, f"flag {flag}: not zeros")

    def trims():
        with go() as c:
            same(c.write(8192, b"t" * 12288), 0)
            same(c.error(n.TRIM, 9000, 5000), 0)
            got = c.read(8192, 12288)
            want(got[:808] == b"t" * 808 and got[5808:] == b"t" * 6480, "a trim touched its neighbours")

    def cached():
        with go() as c:
            same(c.error(n.CACHE, 1, SIZE - 1), 0)
            c.alive()

    case("WRITE_ZEROES with every flag, unaligned", zeroes)
    case("TRIM, unaligned", trims)
    case("CACHE", cached)

    def cookies():
        with go() as c:
            for cookie in (0, 1, (1 << 64) - 1, 1 << 63):
                same(c.ask(n.READ, 0, 16, cookie=cookie).error, 0)
            sent = {c.send(n.WRITE, i * 4096, 4096, 0, bytes([i]) * 4096) for i in range(100)}
            want({c.reply().cookie for _ in range(100)} == sent, "other cookies come back")
            # The same cookie over and over, all in flight.
            for i in range(50):
                c.send(n.FLUSH, cookie=77)
            c.lens = {77: 0}
            for _ in range(50):
                c.lens[77] = 0
                same(c.reply().cookie, 77)
            for i in range(100):
                want(c.read(i * 4096, 4096) == bytes([i]) * 4096, f"block {i}")

    case("any cookie, and many in flight", cookies)

    def disc():
        with go() as c:
            c.send(n.WRITE, 20 << 20, 4096, 0, b"q" * 4096)
            c.send(n.DISC)
            c.reply()
            want(c.is_closed(), "still connected")
        with go() as c:
            same(c.read(20 << 20, 4096), b"q" * 4096)

    def disc_behind_many():
        with go() as c:
            marks = [random.randbytes(4096) for _ in range(200)]
            for i, data in enumerate(marks):
                c.send(n.WRITE, (24 << 20) + i * 4096, 4096, n.FUA if i % 50 == 0 else 0, data)
            c.send(n.DISC)
            for _ in marks:
                same(c.reply().error, 0)
            want(c.is_closed(), "still connected")
        with go() as c:
            want(c.read(24 << 20, 200 * 4096) == b"".join(marks), "something is missing")

    case("DISC behind a write", disc)
    case("DISC finishes 200 writes in flight", disc_behind_many)

    if mode == "simple":
        def status():
            with go() as c:
                same(c.error(n.STATUS, 0, 4096), n.EINVAL)
                c.alive()

        case("BLOCK_STATUS without a context: EINVAL", status)
        return

    def texts():
        with go() as c:
            for answer in (c.ask(n.READ, SIZE, 1), c.ask(n.WRITE, SIZE, 1, 0, b"x"), c.ask(99, 0, 0)):
                want(answer.error and answer.text, f"error {answer.error} without a text")

    case("errors have texts", texts)

    def covers(extents, length, one=False):
        want(extents and all(size > 0 for size, _ in extents), f"{extents}")
        total = sum(size for size, _ in extents)
        want(total <= length if one else total >= 1, f"{total} of {length}")
        want(not one or len(extents) == 1, f"{len(extents)} extents with REQ_ONE")
        return total

    def statuses():
        with go() as c:
            same(c.error(n.TRIM, 0, SIZE), 0)
            same(c.write(MIB, b"s" * MIB), 0)
            same(c.error(n.ZEROES, 3 * MIB, MIB, n.NO_HOLE), 0)
            extents, at = [], 0
            while at < SIZE:
                answer = c.ask(n.STATUS, at, SIZE - at)
                same(answer.error, 0)
                extents += answer.extents
                at += covers(answer.extents, SIZE - at)
            same(at, SIZE)
            merged = []
            for size, state in extents:
                if merged and merged[-1][1] == state:
                    merged[-1] = (merged[-1][0] + size, state)
                else:
                    merged.append((size, state))
            # Zeros that have to stay allocated are no hole; whether they are known to be zeros is up to the server.
            want(merged[3][1] in (0, 2), f"NO_HOLE: {merged}")
            same(merged, [(MIB, 3), (MIB, 0), (MIB, 3), (MIB, merged[3][1]), (SIZE - 4 * MIB, 3)])

    def status_one():
        with go() as c:
            for offset, length in ((0, SIZE), (MIB, 1), (MIB - 1, 2), (MIB + 7, MIB), (SIZE - 1, 1)):
                answer = c.ask(n.STATUS, offset, length, n.REQ_ONE)
                same(answer.error, 0)
                covers(answer.extents, length, one=True)
            same(c.error(n.STATUS, SIZE - 1, 2), n.EINVAL)
            same(c.error(n.STATUS, SIZE, 1), n.EINVAL)
            c.alive()

    def holes():
        with go() as c:
            answer = c.ask(n.READ, 0, 8 * MIB)
            same(answer.error, 0)
            want(2 in answer.chunks, "no hole chunk where there is a hole")
            want(answer.data == bytes(MIB) + b"s" * MIB + bytes(6 * MIB), "something else")

    def four_gib():
        with go("huge") as c:
            same(c.error(n.TRIM, 0, 0xFFFFFFFF), 0)
            same(c.write(0xFFFFFFFF, b"g"), 0)
            answer = c.ask(n.STATUS, 0, 0xFFFFFFFF)
            same(answer.error, 0)
            covers(answer.extents, 0xFFFFFFFF)
            same(answer.extents[0][1], 3)

    case("BLOCK_STATUS of 4 GiB", four_gib)
    case("BLOCK_STATUS after trim, write and NO_HOLE", statuses)
    case("BLOCK_STATUS with REQ_ONE", status_one)
    case("reads show holes", holes)

    if mode == "extended":
        def long():
            with go("huge") as c:
                began = time.monotonic()
                same(c.error(n.TRIM, 0, HUGE), 0)
                same(c.error(n.ZEROES, 0, HUGE), 0)
                same(c.write(HUGE - 4096, b"h" * 4096), 0)
                answer = c.ask(n.STATUS, 0, HUGE)
                same(sum(size for size, _ in answer.extents), HUGE)
                same(answer.extents[0], (HUGE - 4096, 3))
                same(c.error(n.TRIM, 0, HUGE, n.FUA), 0)
                same(c.read(HUGE - 4096, 4096), bytes(4096))
                want(time.monotonic() - began < 2, "64 TiB took too long")
                same(c.error(n.CACHE, 0, HUGE), 0)
                same(c.error(n.READ, 0, HUGE), {n.EINVAL, n.EOVERFLOW, n.ENOMEM})
                same(c.error(n.TRIM, 1, HUGE), {n.EINVAL, n.ENOSPC})
                same(c.error(n.TRIM, HUGE - 1, (1 << 64) - 1), {n.EINVAL, n.ENOSPC})
                c.alive()

        def with_payload():
            with go() as c:
                for ids, found in (((c.context,), 1), ((), 0)):
                    payload = struct.pack(f">Q{len(ids)}I", 4096, *ids)
                    answer = c.ask(n.STATUS, 0, len(payload), n.PAYLOAD, payload)
                    same(answer.error, 0 if found else {0, n.EINVAL})
                for payload in (b"", b"x" * 7, struct.pack(">QI", 4096, 4711), struct.pack(">QI", 1 << 60, c.context)):
                    same(c.error(n.STATUS, 0, len(payload), n.PAYLOAD, payload), n.EINVAL)
                for command in (n.READ, n.TRIM, n.FLUSH, n.ZEROES, n.CACHE, 99):
                    same(c.error(command, 0, 512, n.PAYLOAD, b"p" * 512), n.EINVAL)
                c.alive()

        case("64 TiB at once", long)
        case("payloads of BLOCK_STATUS and of commands that take none", with_payload)

        def compact_magic():
            with go() as c:
                c.put(struct.pack(">IHHQQI", n.REQUEST, 0, n.READ, 1, 0, 512))
                want(c.is_closed(), "still connected")

        case("a compact request after EXTENDED_HEADERS ends the session", compact_magic)
