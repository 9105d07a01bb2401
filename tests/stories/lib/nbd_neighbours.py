"""NBD clients beside each other: broken, hostile, idle, many; and all of them when the server ends."""

import os
import random
import signal
import socket
import struct
import threading
import time

import rawnbd as n
from checks import MIB, MODES, check, same
from rawnbd import Closed
from story import want

IDLE_SECONDS, IDLE_CLIENTS, HOARDERS, LARGE_WRITERS = 10, 300, 50, 12
HOARD_BYTES_MAX = 400 << 20


def together(connect, server):
    """Clients beside each other."""

    def visible():
        with connect().go() as a, connect().go() as b:
            for i in range(200):
                data = struct.pack(">Q", i) * 64
                same(a.write(i * 512, data), 0)
                want(b.read(i * 512, 512) == data, f"write {i} is not visible to the other")
            same(b.error(n.FLUSH), 0)

    def neighbours():
        # 512-byte writes into the same blocks from two sides: both have to survive.
        def side(number):
            with connect().go() as c:
                for i in range(number, 512, 2):
                    c.send(n.WRITE, (8 << 20) + i * 512, 512, 0, bytes([i % 251 + 1]) * 512)
                for i in range(number, 512, 2):
                    same(c.reply().error, 0)

        threads = [threading.Thread(target=side, args=(number,)) for number in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        with connect().go() as c:
            got = c.read(8 << 20, 512 * 512)
            for i in range(512):
                want(got[i * 512:i * 512 + 512] == bytes([i % 251 + 1]) * 512, f"sector {i} is lost")

    def half():
        with connect().go() as c, connect().go() as other:
            same(c.write(9 << 20, b"o" * MIB), 0)
            c.send(n.WRITE, 9 << 20, MIB, 0, b"h" * (MIB // 2))
            for _ in range(20):
                other.alive()
                time.sleep(0.02)
            want(other.read(9 << 20, MIB) == b"o" * MIB, "half a write is visible")
            c.close()
            time.sleep(0.1)
            want(other.read(9 << 20, MIB) == b"o" * MIB, "half a write is visible after the reset")

    def half_a_header():
        with connect().go() as c, connect().go() as other:
            c.put(struct.pack(">IHHQ", n.REQUEST, 0, n.WRITE, 1))
            c.close()
            other.alive()

    def resets():
        for round_ in range(30):
            c = connect().go(mode=MODES[1] if round_ % 2 else None)
            for i in range(50):
                c.send(n.READ if i % 2 else n.WRITE, 0, 65536, 0, b"" if i % 2 else b"r" * 65536)
            c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            c.close()
        with connect().go() as c:
            c.alive()

    def deaf():
        # One that asks and never listens is not to hold up anybody else.
        with connect().go() as c, connect().go() as other:
            for _ in range(60):
                c.send(n.READ, 0, MIB)
            began = time.monotonic()
            for _ in range(50):
                other.alive()
            want(time.monotonic() - began < 3, "the others wait")

    def garbage():
        for _ in range(60):
            with connect(flags=None) as c:
                try:
                    c.put(random.randbytes(random.randrange(1, 3000)))
                except Closed:
                    pass
        for _ in range(60):
            with connect().go() as c:
                try:
                    c.put(struct.pack(">I", n.REQUEST) + random.randbytes(600))
                except Closed:
                    pass
        with connect().go() as c:
            c.alive()

    check("a write is visible to others when it is answered", visible)
    check("neighbouring 512-byte writes of two clients both survive", neighbours)
    check("half a payload, silence, reset: never journaled, others are served", half)
    check("half a header, then gone", half_a_header)
    check("resets with 50 requests in flight, 30 times", resets)
    check("one that never takes its replies holds up nobody", deaf)
    check("random bytes in both phases", garbage)

    def memory():
        def rss():
            with open(f"/proc/{server.process.pid}/status") as status:
                return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

        clients = [connect().go("huge") for _ in range(HOARDERS)]
        before = rss()
        for c in clients:
            c.send(n.WRITE, 0, 64 << 20, 0, b"x")
        time.sleep(1.5)
        with connect().go() as other:
            other.alive()
            # A large request of an honest client all the same.
            same(other.write(0, bytes(32 << 20)), 0)
        grown = rss() - before
        print(f"        {HOARDERS} clients that announce 64 MiB: {grown >> 20} MiB more, {rss() >> 20} MiB in all")
        for c in clients:
            c.close()
        want(grown < HOARD_BYTES_MAX, f"{grown >> 20} MiB")

    def all_large():
        # Together more than the server has for large requests; none of them alone is.
        errors = []
        most_sent = threading.Barrier(LARGE_WRITERS)

        def one(number):
            with connect(timeout=25).go("huge") as c:
                c.send(n.WRITE, number << 30, 64 << 20, 0, bytes(40 << 20))
                most_sent.wait(20)
                c.put(bytes(24 << 20))
                errors.append(c.reply().error)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(LARGE_WRITERS)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        same(errors, [0] * LARGE_WRITERS)

    def drips():
        # Large writes that come byte by byte must not keep the memory that an honest one needs.
        clients = [connect().go("huge") for _ in range(10)]
        for c in clients:
            c.send(n.WRITE, 0, 64 << 20, 0, bytes(50 << 20))
        stop = threading.Event()

        def drip():
            while not stop.wait(0.3):
                for c in clients:
                    c.socket.send(b"d")

        dripping = threading.Thread(target=drip)
        dripping.start()
        time.sleep(1.5)
        try:
            with connect().go() as c:
                same(c.write(0, bytes(32 << 20)), 0)
        finally:
            stop.set()
            dripping.join()
            for c in clients:
                c.close()

    def crowd():
        idle = [connect(flags=None) for _ in range(IDLE_CLIENTS // 2)]
        idle += [connect().go() for _ in range(IDLE_CLIENTS // 2)]
        with connect().go() as c:
            began = time.monotonic()
            for _ in range(100):
                c.alive()
            want(time.monotonic() - began < 3, "slow beside idle clients")
        for c in idle[IDLE_CLIENTS // 2::10]:
            c.alive()
        for c in idle:
            c.close()

    def nothing_left():
        def held():
            return len(os.listdir(f"/proc/{server.process.pid}/fd")), len(os.listdir(f"/proc/{server.process.pid}/task"))

        def round_():
            clients = [connect().go(name) for name in ("disk", "disk", "odd", "old@first", "old@first+rw") * 20]
            for c in clients:
                c.close()
            time.sleep(0.5)
            return held()

        first = round_()
        last = [round_() for _ in range(3)][-1]
        want(last[0] <= first[0] + 5 and last[1] <= first[1] + 5, f"descriptors and threads: {first}, then {last}")

    check("gone clients leave no descriptors or threads", nothing_left)
    check("50 clients announce 64 MiB and send a byte", memory)
    check(f"{LARGE_WRITERS} clients write 64 MiB at once", all_large)
    check("10 clients let 64 MiB drip", drips)
    check(f"{IDLE_CLIENTS} idle clients", crowd)


def idle(connect, entering):
    """One that never finishes its handshake goes after about ten seconds; the greeting counts as its beginning."""
    with connect(flags=None) as c:
        if entering:
            c.put(struct.pack(">I", 3) + n.OPT_MAGIC + struct.pack(">II", n.GO, 100) + b"half")
        began = time.monotonic()
        want(c.is_closed(IDLE_SECONDS + 5), "still connected")
        want(IDLE_SECONDS - 3 < time.monotonic() - began < IDLE_SECONDS + 3, f"after {time.monotonic() - began:.1f} s")


def stays(connect):
    """One that is idle after its handshake stays."""
    with connect().go() as c:
        time.sleep(IDLE_SECONDS + 3)
        c.alive()


def shutdown(connect, server):
    """SIGTERM under load: what was answered is there after a restart, in another run of the server."""
    acknowledged, ends = {}, []

    def load(number):
        c = connect().go(mode=MODES[number % 3])
        at, sent = number * MIB, {}
        try:
            for i in range(100_000):
                data = struct.pack(">QQ", number, i) * 32
                sent[c.send(n.WRITE, at + i % 2000 * 512, 512, 0, data)] = (at + i % 2000 * 512, data)
                if len(sent) >= 16:
                    answer = c.reply()
                    offset, data = sent.pop(answer.cookie)
                    if answer.error == 0:
                        acknowledged[offset] = data
                    else:
                        ends.append(answer.error)
                        return
        except (Closed, OSError):
            ends.append("closed")
        finally:
            c.close()

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    time.sleep(0.7)
    idle_client, deaf, stuck = connect().go(), connect().go(), connect().go()
    for _ in range(60):
        deaf.send(n.READ, 0, MIB)
    stuck.send(n.WRITE, 60 << 20, MIB, 0, b"h" * 5000)
    # So that the server hangs on what the deaf one does not take.
    time.sleep(0.5)
    waiting = connect()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    want(idle_client.is_closed(5), "an idle client is not told")
    want(waiting.is_closed(5), "a client in its handshake is not told")
    [thread.join(10) for thread in threads]
    same(server.process.wait(20), 0)
    want(time.monotonic() - began < 8, "it does not end in time")
    print(f"        {len(acknowledged)} sectors acknowledged, ended by {ends}, {time.monotonic() - began:.1f} s")
    for end in ends:
        want(end in (n.ESHUTDOWN, "closed"), f"a request ended with {end}")
    server.start()
    with connect().go() as c:
        want(b"hhhh" not in c.read(60 << 20, MIB), "half a write is there")
        for offset, data in acknowledged.items():
            got = c.read(offset, 512)
            # Later ones may have come through without their answer.
            want(got[:8] == data[:8] and got[8:16] >= data[8:16], f"{offset} is lost")
