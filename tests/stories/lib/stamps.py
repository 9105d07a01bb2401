"""A client that stamps every block it writes and knows what was answered when, and what each instant must show."""

import struct
import threading
import time

from story import want

BLOCK = 4096


def connect(uri, strict=True):
    """A libnbd handle on an export."""
    import nbd

    handle = nbd.NBD()
    if not strict:
        # Let the server refuse, not the library.
        handle.set_strict_mode(0)
    handle.set_full_info(True)
    handle.connect_uri(uri)
    return handle


class Operation:
    """One request. `after` is None while nobody answered it."""

    def __init__(self, number, kind, first, count):
        self.number, self.kind, self.first, self.count = number, kind, first, count
        self.before = time.time_ns()
        self.after = None
        self.fua = False


class Region:
    """Blocks that one connection writes, one request at a time: every instant shows a prefix of its requests."""

    def __init__(self, seed, identity, first, blocks, random):
        self.seed, self.identity, self.first, self.blocks, self.random = seed, identity, first, blocks, random
        self.operations = []
        self.number = 0
        # Flushes and FUA writes that were answered, as (asked, answered): what anybody had answered before the first
        # is durable from the second on.
        self.syncs = []
        # Whether it asks for flushes and FUA at all.
        self.flushes = True

    def stamp(self, number, block):
        """What request `number` writes into a block."""
        return struct.pack("<QQQQ", self.seed, self.identity, number, block) * (BLOCK // 32)

    def step(self, handle):
        """One random request: write (sometimes with FUA), zero or flush. Raises nbd.Error when the server is gone."""
        import nbd

        dice = self.random.random()
        if dice < 0.1 and self.flushes:
            before = time.time_ns()
            handle.flush()
            self.syncs.append((before, time.time_ns()))
            return
        kind = "zero" if dice < 0.2 else "write"
        # Now and then a large one: segments fill and are sealed, and a kill may come in the middle of it.
        count = self.random.randint(1, 4) if self.random.random() < 0.95 else self.random.randint(40, self.blocks)
        first = self.first + self.random.randint(0, self.blocks - count)
        self.number += 1
        operation = Operation(self.number, kind, first, count)
        self.operations.append(operation)
        if kind == "zero":
            handle.zero(count * BLOCK, first * BLOCK)
        else:
            data = b"".join(self.stamp(operation.number, first + i) for i in range(count))
            flags = nbd.CMD_FLAG_FUA if dice < 0.4 and self.flushes else 0
            handle.pwrite(data, first * BLOCK, flags)
            operation.fua = flags != 0
        operation.after = time.time_ns()
        if operation.fua:
            self.syncs.append((operation.before, operation.after))

    def durable_until(self, cut_at):
        """What anybody had answered by then was durable at `cut_at`.

        A sync that was answered later counts for nothing: no client hears an answer after its power is gone, and
        ext4 says yes to an fdatasync which its emergency stop meets half-way, although the extents that it wrote
        stay unwritten (seen in half of all stops with files from posix_fallocate, without any server)."""
        return max((asked for asked, answered in self.syncs if answered < cut_at), default=0)

    def image(self, count):
        """The region after its first `count` requests: for each block the number of its stamp, 0 for zeros."""
        blocks = [0] * self.blocks
        for operation in self.operations[:count]:
            self._apply(blocks, operation)
        return blocks

    def _apply(self, blocks, operation):
        start = operation.first - self.first
        number = operation.number if operation.kind == "write" else 0
        blocks[start : start + operation.count] = [number] * operation.count

    def _bytes(self, image):
        zero = bytes(BLOCK)
        return b"".join(
            self.stamp(number, self.first + i) if number else zero for i, number in enumerate(image)
        )

    def _numbers(self, got):
        """The image that bytes are; -1 for a block that no request wrote."""
        numbers = []
        for i in range(self.blocks):
            block = bytes(got[i * BLOCK : (i + 1) * BLOCK])
            number = struct.unpack_from("<QQQQ", block)[2]
            whole = block == (self.stamp(number, self.first + i) if number else bytes(BLOCK))
            numbers.append(number if whole else -1)
        return numbers

    def read(self, handle):
        """All of it."""
        return handle.pread(self.blocks * BLOCK, self.first * BLOCK)

    def choices(self, at):
        """How many requests the instant may show: those answered by then, or also the one on its way."""
        answered = sum(1 for o in self.operations if o.after is not None and o.after <= at)
        begun = sum(1 for o in self.operations if o.before < at)
        return range(answered, begun + 1)

    def check(self, got, choices, what):
        """Fails unless the bytes are one of these prefixes, whole. Gives which."""
        for count in choices:
            if bytes(got) == self._bytes(self.image(count)):
                return count
        newest = self._bytes(self.image(choices[-1]))
        bad = next(i for i in range(self.blocks) if got[i * BLOCK : (i + 1) * BLOCK] != newest[i * BLOCK : (i + 1) * BLOCK])
        found = struct.unpack("<QQQQ", bytes(got[bad * BLOCK : bad * BLOCK + 32]))
        text = f"{what}: region {self.identity}, block {self.first + bad}: want a state after {list(choices)} requests"
        differ = [i for i in range(self.blocks) if got[i * BLOCK : (i + 1) * BLOCK] != newest[i * BLOCK : (i + 1) * BLOCK]]
        there = self._numbers(got)
        told = [
            (place + 1, o.number, o.kind, o.first, o.count, o.fua, o.after is not None)
            for place, o in enumerate(self.operations)
            if o.first <= self.first + bad < o.first + o.count or o.number == found[2]
        ]
        more = f"{len(differ)} blocks differ: {[(self.first + i, there[i], self.image(choices[-1])[i]) for i in differ[:40]]}; who touched it: {told[-8:]}"
        want(False, f"{text} (newest stamp {self.image(choices[-1])[bad]}), found {found}; {more}")

    def settle(self, got, dead):
        """After a restart of a server that was dead at `dead`: everything answered is there, and the request nobody
        answered is there whole, and was by then, or never."""
        unanswered = [o for o in self.operations if o.after is None]
        want(len(unanswered) <= 1, "a region has one request at a time")
        total = len(self.operations)
        count = self.check(got, range(total, total - len(unanswered) - 1, -1), "after the restart")
        for operation in unanswered:
            if count == total:
                operation.after = dead
            else:
                self.operations.remove(operation)


    def settle_power_cut(self, got, durable_until, cut_at, dead):
        """After a power cut: a prefix is there, everything durable in it. Forgets what is lost; gives what surely is
        there and what may be."""
        durable = [
            i + 1
            for i, o in enumerate(self.operations)
            if o.after and (o.after <= durable_until or (o.fua and o.after < cut_at))
        ]
        least = max(durable, default=0)
        found = self._numbers(got)
        image = self.image(least)
        fits = [least] if image == found else []
        for count, operation in enumerate(self.operations[least:], least + 1):
            self._apply(image, operation)
            if image == found:
                # Several, where zeros were written on zeros.
                fits.append(count)
        if not fits:
            self.check(got, sorted({len(self.operations), least}), "after the power cut, no prefix fits, as")
        surely, most = fits[0], fits[-1]
        lost = self.operations[most:]
        sure, maybe = self.operations[:surely], self.operations[:most]
        del self.operations[most:]
        for operation in self.operations:
            operation.after = operation.after or dead
        return sure, maybe, lost


class Writers:
    """Regions beside each other, each with a connection and a thread."""

    def __init__(self, story, count=3, blocks=192):
        self.regions = [
            Region(story.seed, i, i * blocks, blocks, type(story.random)(story.seed + i)) for i in range(count)
        ]
        self.threads = []
        self.errors = []

    def start(self, uri, pause=0.0):
        """Writes until the server goes away or `stop` is called."""
        self.stopping = False
        self.threads = [threading.Thread(target=self._write, args=(r, uri, pause), daemon=True) for r in self.regions]
        for thread in self.threads:
            thread.start()

    def _write(self, region, uri, pause):
        import nbd

        try:
            handle = connect(uri)
            while not self.stopping:
                region.step(handle)
                if pause:
                    time.sleep(pause)
            handle.shutdown()
        except nbd.Error as error:
            self.errors.append(error)

    def join(self, seconds=30):
        """Waits until all have ended."""
        for thread in self.threads:
            thread.join(seconds)
            want(not thread.is_alive(), f"a writer still waits for an answer after {seconds} s")

    def stop(self):
        """Ends them; no error may have come."""
        self.stopping = True
        self.join()
        want(not self.errors, f"a writer got an error: {self.errors[:1]}")

    def count(self):
        """Requests so far."""
        return sum(len(region.operations) for region in self.regions)

    def settle(self, uri, dead):
        """See Region.settle."""
        handle = connect(uri)
        for region in self.regions:
            region.settle(region.read(handle), dead)
        handle.shutdown()

    def durable_until(self, cut_at):
        """See Region.durable_until."""
        return max(region.durable_until(cut_at) for region in self.regions)

    def settle_power_cut(self, uri, cut_at, dead):
        """See Region.settle_power_cut; and all regions together are one prefix. Gives how many requests are lost,
        and when the oldest of them was answered."""
        handle = connect(uri)
        durable_until = self.durable_until(cut_at)
        parts = [region.settle_power_cut(region.read(handle), durable_until, cut_at, dead) for region in self.regions]
        handle.shutdown()
        newest = max((o.before for sure, _, _ in parts for o in sure), default=0)
        holes = [o.number for _, _, lost in parts for o in lost if o.after is not None and o.after < newest]
        want(not holes, f"requests {holes[:5]} are lost, and later ones are there")
        answered = [o.after for _, _, lost in parts for o in lost if o.after is not None]
        return sum(len(lost) for _, _, lost in parts), min(answered, default=None)

    def check_instant(self, server, volume, at):
        """`volume@ns:at` shows every write answered by then, and none begun later."""
        handle = connect(server.uri(f"{volume}@ns:{at}"))
        for region in self.regions:
            region.check(region.read(handle), region.choices(at), f"{volume}@ns:{at}")
        handle.shutdown()
