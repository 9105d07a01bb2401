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


class Region:
    """Blocks that one connection writes, one request at a time: every instant shows a prefix of its requests."""

    def __init__(self, seed, identity, first, blocks, random):
        self.seed, self.identity, self.first, self.blocks, self.random = seed, identity, first, blocks, random
        self.operations = []
        self.number = 0

    def stamp(self, number, block):
        """What request `number` writes into a block."""
        return struct.pack("<QQQQ", self.seed, self.identity, number, block) * (BLOCK // 32)

    def step(self, handle):
        """One random request: write (sometimes with FUA), zero or flush. Raises nbd.Error when the server is gone."""
        import nbd

        dice = self.random.random()
        if dice < 0.1:
            handle.flush()
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
            flags = nbd.CMD_FLAG_FUA if dice < 0.4 else 0
            handle.pwrite(data, first * BLOCK, flags)
        operation.after = time.time_ns()

    def image(self, count):
        """The region after its first `count` requests: for each block the number of its stamp, 0 for zeros."""
        blocks = [0] * self.blocks
        for operation in self.operations[:count]:
            start = operation.first - self.first
            number = operation.number if operation.kind == "write" else 0
            blocks[start : start + operation.count] = [number] * operation.count
        return blocks

    def _bytes(self, image):
        zero = bytes(BLOCK)
        return b"".join(
            self.stamp(number, self.first + i) if number else zero for i, number in enumerate(image)
        )

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
        want(False, f"{text} (newest stamp {self.image(choices[-1])[bad]}), found {found}")

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

    def check_instant(self, server, volume, at):
        """`volume@ns:at` shows every write answered by then, and none begun later."""
        handle = connect(server.uri(f"{volume}@ns:{at}"))
        for region in self.regions:
            region.check(region.read(handle), region.choices(at), f"{volume}@ns:{at}")
        handle.shutdown()
