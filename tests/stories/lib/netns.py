"""Two sites on one machine: network namespaces with one line between them, which can be cut."""

import contextlib
import os


class Sites:
    """Namespaces `a` and `b` and a line; they go with the story."""

    A, B = "10.77.0.1", "10.77.0.2"

    def __init__(self, story):
        self.story = story
        self.names = {site: f"cdp-{os.getpid()}-{site}" for site in "ab"}
        for name in self.names.values():
            story.run("ip", "netns", "add", name)
            story.on_exit(lambda name=name: story.run("ip", "netns", "del", name, check=False))
        a, b = self.names["a"], self.names["b"]
        # Made inside: no name of the machine's own network is taken.
        self._in(a, "ip", "link", "add", "line", "type", "veth", "peer", "name", "line", "netns", b)
        for site, address in (("a", self.A), ("b", self.B)):
            self._in(self.names[site], "ip", "addr", "add", f"{address}/24", "dev", "line")
            self._in(self.names[site], "ip", "link", "set", "lo", "up")
            self._in(self.names[site], "ip", "link", "set", "line", "up")

    def _in(self, name, *command):
        return self.story.run("ip", "netns", "exec", name, *command)

    def inside(self, site):
        """What to put in front of a command, so that it runs at this site. Its mounts stay the machine's: in a mount
        namespace of its own a server would keep a filesystem busy that is unmounted outside."""
        return ["nsenter", f"--net=/run/netns/{self.names[site]}", "--"]

    def cut(self):
        """Nothing passes any more, and nobody is told."""
        self._in(self.names["a"], "ip", "link", "set", "line", "down")

    def heal(self):
        """It passes again."""
        self._in(self.names["a"], "ip", "link", "set", "line", "up")

    @contextlib.contextmanager
    def without_line(self):
        """Cut for a while."""
        self.cut()
        try:
            yield
        finally:
            self.heal()


class Lan(Sites):
    """Two sites and a network that clients are on: both sites have an address there, and one more may move between them."""

    OF_A, OF_B, OF_CLIENT, MOVING = "10.78.0.1", "10.78.0.2", "10.78.0.9", "10.78.0.100"

    def __init__(self, story):
        super().__init__(story)
        client = self.names["c"] = f"cdp-{os.getpid()}-c"
        story.run("ip", "netns", "add", client)
        story.on_exit(lambda: story.run("ip", "netns", "del", client, check=False))
        self._in(client, "ip", "link", "add", "lan", "type", "bridge")
        for site, address in (("a", self.OF_A), ("b", self.OF_B)):
            name = self.names[site]
            self._in(name, "ip", "link", "add", "lan", "type", "veth", "peer", "name", f"to-{site}", "netns", client)
            self._in(name, "ip", "addr", "add", f"{address}/24", "dev", "lan")
            self._in(name, "ip", "link", "set", "lan", "up")
            self._in(client, "ip", "link", "set", f"to-{site}", "master", "lan", "up")
        self._in(client, "ip", "addr", "add", f"{self.OF_CLIENT}/24", "dev", "lan")
        self._in(client, "ip", "link", "set", "lan", "up")
        self._in(client, "ip", "link", "set", "lo", "up")
