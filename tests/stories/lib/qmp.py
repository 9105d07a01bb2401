"""QEMU's monitor, as far as a story needs it: one JSON object a line."""

import json
import socket
import time

from story import Failed, wait_until, want


class Monitor:
    """A connection to `-qmp unix:PATH,server=on,wait=off`."""

    def __init__(self, story, path):
        self.events = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        wait_until(lambda: self._connect(path), 20, "the machine's monitor does not answer")
        self.lines = self.socket.makefile("rw")
        story.on_exit(self.socket.close)
        self.lines.readline()
        self.do("qmp_capabilities")

    def _connect(self, path):
        try:
            self.socket.connect(str(path))
            return True
        except OSError:
            return False

    def do(self, command, **arguments):
        """Carries a command out; gives what it returns. Names of events are kept."""
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            line = self.lines.readline()
            want(line, f"the machine ended during {command}")
            answer = json.loads(line)
            if "event" in answer:
                self.events.append(answer["event"])
            if "error" in answer:
                raise Failed(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def job(self, name):
        """The block job of this name, or None when it is over."""
        return next((job for job in self.do("query-block-jobs") if job["device"] == name), None)

    def wait_for_job(self, name, state, seconds=60):
        """Until the job is `ready`, or `over`."""
        until = time.monotonic() + seconds
        while True:
            job = self.job(name)
            if (state == "over") == (job is None) and (job is None or job["ready"]):
                return
            want(job or state == "over", f"the job {name} ended before it was ready")
            want(time.monotonic() < until, f"the job {name} is not {state} within {seconds} s")
            time.sleep(0.05)
