"""A `cdp serve` of a story: started, killed, started again; and the commands that talk to it."""

import json
import socket
import time
from urllib.parse import quote

from story import Failed, end, wait_until, want


def free_port():
    """A TCP port on loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A store in the story's directory with one server."""

    def __init__(self, story, store=None, name="server", listen="127.0.0.1:0", inside=(), more=()):
        self.story = story
        self.store = store or story.dir / "store"
        # Short: a socket's path has 107 bytes at most.
        self.socket = story.dir / f"{name}.sock"
        self.listen = listen
        # Where it runs, and what else it is told.
        self.inside, self.more = list(inside), list(more)
        self.log = story.log_file(name)
        self.process = None
        story.on_exit(self.end)

    def cdp(self, *arguments, **options):
        """Runs a command on the store; gives what it printed."""
        arguments = [self.story.cdp_path, "--store", self.store, *arguments]
        return self.story.run(*arguments, **options).stdout.strip()

    def cdp_json(self, *arguments, **options):
        """Runs a command with `--json`; gives the value."""
        text = self.cdp("--json", *arguments, **options)
        try:
            return json.loads(text)
        except ValueError:
            raise Failed(f"cdp {' '.join(map(str, arguments))} --json printed {text[:300]!r}") from None

    def start(self):
        """Starts it and waits until it answers. Gives the seconds that took."""
        began = time.monotonic()
        self.process = self.story.start(
            *self.inside, self.story.cdp_path, "--store", self.store, "serve", "--socket", self.socket,
            "--listen", self.listen, *self.more, stdout=self.log, stderr=self.log,
        )
        wait_until(self._answers, 30, "the server does not answer")
        return time.monotonic() - began

    def _answers(self):
        want(self.process.poll() is None, f"the server ended with {self.process.returncode}")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            try:
                client.connect(str(self.socket))
                return client.recv(8) == b"NBDMAGIC"
            except OSError:
                return False

    def kill9(self):
        """As an OOM kill or a bug would."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; it has to end by itself and say that all was well."""
        self.process.terminate()
        code = self.process.wait(30)
        want(code == 0, f"the server ended with {code} on SIGTERM")

    def end(self):
        """However it stands."""
        if self.process:
            end(self.process)

    def uri(self, export="disk"):
        """Of an export, for a stock client."""
        return f"nbd+unix:///{quote(export, safe='')}?socket={quote(str(self.socket))}"

    def attach(self, volume, directory=None, **options):
        """`cdp attach`; it is taken down at the end at the latest. Gives what it says, as JSON."""
        more = [directory] if directory else []
        attached = self.cdp_json("attach", volume, *more, **options)
        self.story.on_exit(self._detach_by_force, attached["id"])
        return attached

    def detach(self, which):
        """`cdp detach`: everything is durable when it is back."""
        self.cdp("detach", which, timeout=90)

    def mount(self, target, directory, **options):
        """`cdp mount VOL@POINT DIR`. Gives what it says, as JSON."""
        mounted = self.cdp_json("mount", target, directory, **options)
        self.story.on_exit(self._detach_by_force, str(directory))
        return mounted

    def umount(self, directory):
        """`cdp umount`."""
        self.cdp("umount", directory, timeout=90)

    def _detach_by_force(self, which):
        self.cdp("detach", "--force", which, check=False, timeout=30)
