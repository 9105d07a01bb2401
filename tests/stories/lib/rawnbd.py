"""An NBD client of bytes on a socket: it sends whatever it is told, right or wrong, and takes replies apart."""

import socket
import struct
from collections import namedtuple

HELLO = b"NBDMAGICIHAVEOPT"
OPT_MAGIC, OPT_REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN = (1 << 31) + 1, (1 << 31) + 2, (1 << 31) + 3, (1 << 31) + 6
ERR_SHUTDOWN, ERR_TOO_BIG, ERR_EXT_REQD = (1 << 31) + 7, (1 << 31) + 9, (1 << 31) + 10
ERRORS_OF_SIZE = (ERR_INVALID, ERR_TOO_BIG)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD = 1, 2, 4, 8, 16, 32
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
F_READ_ONLY, F_FLUSH, F_FUA, F_TRIM, F_ZEROES, F_DF, F_MULTI, F_CACHE, F_FAST = 2, 4, 8, 32, 64, 128, 256, 1024, 2048
REQUEST, EXT_REQUEST, SIMPLE, CHUNK, EXT_REPLY = 0x25609513, 0x21E41C71, 0x67446698, 0x668E33EF, 0x6E8A278C

Reply = namedtuple("Reply", "error data chunks text extents cookie")


class Closed(Exception):
    """The server hung up."""


def counted(name):
    """A string behind its length."""
    name = name if isinstance(name, bytes) else name.encode()
    return struct.pack(">I", len(name)) + name


def info_data(name, wanted=()):
    """Of GO and INFO."""
    return counted(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta_data(name, queries=()):
    """Of the options about metadata contexts."""
    return counted(name) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries))


class Raw:
    """One connection."""

    def __init__(self, address, flags=3, timeout=8):
        self.socket = socket.create_connection(address) if isinstance(address, tuple) else self._unix(address)
        self.socket.settimeout(timeout)
        self.mode, self.size, self.flags, self.cookie, self.lens = "simple", None, None, 1, {}
        self.hello = self.get(18)
        if flags is not None:
            self.put(struct.pack(">I", flags))

    @staticmethod
    def _unix(path):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(8)
        made.connect(str(path))
        return made

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """At once, without a word."""
        self.socket.close()

    def put(self, data):
        """These bytes."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(f"while sending: {error}") from None

    def get(self, count):
        """So many bytes."""
        got = bytearray()
        while len(got) < count:
            try:
                part = self.socket.recv(min(count - len(got), 1 << 20))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed(f"after {len(got)} of {count} bytes")
            got += part
        return bytes(got)

    def is_closed(self, seconds=3):
        """Whether the server hangs up within a time; what it still says is read past."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    # The handshake.

    def send_option(self, number, data=b"", length=None):
        """An option, perhaps with a lying length."""
        self.put(OPT_MAGIC + struct.pack(">II", number, len(data) if length is None else length) + data)

    def option_reply(self):
        """One reply: option, type, data."""
        magic, number, kind, length = struct.unpack(">QIII", self.get(20))
        assert magic == OPT_REPLY_MAGIC, f"magic {magic:x}"
        return number, kind, self.get(length)

    def option(self, number, data=b"", length=None):
        """Sends it; gives all replies, up to the final one, as (type, data)."""
        self.send_option(number, data, length)
        return self.option_replies(number)

    def option_replies(self, number):
        """All replies to one option."""
        replies = []
        while True:
            to, kind, data = self.option_reply()
            assert to == number, f"a reply to {to}, not {number}"
            replies.append((kind, data))
            if kind == ACK or kind >> 31:
                return replies

    def final(self, number, data=b"", length=None):
        """Type of the final reply."""
        return self.option(number, data, length)[-1][0]

    def go(self, export="disk", mode=None, allocation=None, wanted=()):
        """Enters transmission; gives self."""
        if mode in ("structured", "extended"):
            assert self.final(STRUCTURED if mode == "structured" else EXTENDED) == ACK
            self.mode = mode
            if allocation is not False:
                replies = self.option(SET_META, meta_data(export, ["base:allocation"]))
                assert replies[-1][0] == ACK, replies
                self.context = struct.unpack(">I", replies[0][1][:4])[0]
        replies = self.option(GO, info_data(export, wanted))
        assert replies[-1][0] == ACK, replies[-1]
        self.size, self.flags = struct.unpack(">QH", replies[0][1][2:12])
        return self

    # Transmission.

    def send(self, command, offset=0, length=0, flags=0, payload=b"", cookie=None, magic=None):
        """A request, right or wrong; gives its cookie."""
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if self.mode == "extended" and command == WRITE and flags >= 0:
            flags |= PAYLOAD
        flags = abs(flags)
        self.lens[cookie] = length if command == READ else 0
        form, normal = (">IHHQQQ", EXT_REQUEST) if self.mode == "extended" else (">IHHQQI", REQUEST)
        self.put(struct.pack(form, magic or normal, flags, command, cookie, offset, length) + payload)
        return cookie

    def reply(self):
        """The next whole reply. Chunks of other requests must not come between."""
        error, data, chunks, text, extents, cookie = 0, {}, [], "", [], None
        while True:
            (magic,) = struct.unpack(">I", self.get(4))
            if magic == SIMPLE:
                assert self.mode != "extended", "a simple reply with extended headers"
                error, cookie = struct.unpack(">IQ", self.get(12))
                length = self.lens.pop(cookie)
                assert self.mode == "simple" or not length, "a simple reply to a read"
                return Reply(error, b"" if error else self.get(length), [], "", [], cookie)
            if magic == CHUNK:
                assert self.mode == "structured"
                flags, kind, cookie, length = struct.unpack(">HHQI", self.get(16))
            else:
                assert magic == EXT_REPLY and self.mode == "extended", f"magic {magic:x} in {self.mode}"
                flags, kind, cookie, _, length = struct.unpack(">HHQQQ", self.get(28))
            body = self.get(length)
            chunks.append(kind)
            if kind == 1:
                (at,) = struct.unpack(">Q", body[:8])
                data[at] = body[8:]
            elif kind == 2:
                at, zeros = struct.unpack(">QI", body)
                data[at] = bytes(zeros)
            elif kind == 5:
                extents += struct.iter_unpack(">II", body[4:])
            elif kind == 6:
                extents += struct.iter_unpack(">QQ", body[8:])
            elif kind >> 15:
                error, size = struct.unpack(">IH", body[:6])
                text = body[6:6 + size].decode()
            if flags & 1:
                self.lens.pop(cookie, None)
                return Reply(error, b"".join(data[at] for at in sorted(data)), chunks, text, extents, cookie)

    def ask(self, *arguments, **options):
        """A request and its reply."""
        cookie = self.send(*arguments, **options)
        answer = self.reply()
        assert answer.cookie == cookie, f"cookie {answer.cookie}, not {cookie}"
        return answer

    def error(self, *arguments, **options):
        """A request; the error number of its reply."""
        return self.ask(*arguments, **options).error

    def read(self, offset, length, flags=0):
        """Bytes."""
        answer = self.ask(READ, offset, length, flags)
        assert answer.error == 0, f"error {answer.error} {answer.text}"
        assert len(answer.data) == length, f"{len(answer.data)} bytes of {length}"
        return answer.data

    def write(self, offset, data, flags=0):
        """Writes; gives the error number."""
        return self.error(WRITE, offset, len(data), flags, data)

    def alive(self):
        """Whether requests and replies are still in step."""
        answer = self.ask(READ, 0, 512)
        assert answer.error == 0 and len(answer.data) == 512, "out of step"
