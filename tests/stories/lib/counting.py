#!/usr/bin/python3
"""A client that writes a counter, block after block, and connects again whenever it has to: `counting.py HOST PORT EXPORT`.
Each line of its output is a number that was acknowledged as durable."""

import socket
import struct
import sys
import time

from rawnbd import Raw

BLOCKS, BLOCK, FLUSH = 64, 4096, 3

# A machine that is gone answers nothing.
socket.setdefaulttimeout(2)
host, port, export = sys.argv[1:]
number = 1
while True:
    try:
        with Raw((host, int(port)), timeout=2) as raw:
            raw.go(export)
            while True:
                block = struct.pack("<Q", number) * (BLOCK // 8)
                raw.write(number % BLOCKS * BLOCK, block)
                raw.ask(FLUSH)
                print(number, flush=True)
                number += 1
                time.sleep(0.002)
    except KeyboardInterrupt:
        raise
    except Exception as trouble:  # whatever it is, the next connection has to do
        print(f"again: {trouble!r}"[:200], file=sys.stderr, flush=True)
        time.sleep(0.05)
