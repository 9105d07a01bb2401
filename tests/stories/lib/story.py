"""One story: a scratch directory, steps with their seconds, a limit on its time, and nothing left behind."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
# The distribution's programs first: its nbdsh needs its python3.
os.environ["PATH"] = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")


# Of each log, when a story fails.
LOG_LINES = 40


class Failed(Exception):
    """Something is not as the story says."""


def want(truth, message):
    """Fails the story with a message unless `truth` holds."""
    if not truth:
        raise Failed(message)


def wait_until(truth, seconds, message):
    """Asks `truth` until it holds; fails the story after `seconds`. Gives what `truth` gave."""
    until = time.monotonic() + seconds
    while True:
        answer = truth()
        if answer:
            return answer
        want(time.monotonic() < until, f"{message} (waited {seconds} s)")
        time.sleep(0.05)


class Story:
    """Begins on `with`; leaving it takes everything away, whatever happened, and ends the program."""

    def __init__(self, programs=(), root=False, nbd=False, seconds_max=150):
        self.name = Path(sys.argv[0]).name
        self.seconds_max = seconds_max
        self.began = time.monotonic()
        self._cleanups = []
        missing = [program for program in programs if not shutil.which(program)]
        if root and os.geteuid() != 0:
            missing.append("root")
        if root and not (os.path.exists("/dev/fuse") and os.path.exists("/dev/loop-control")):
            missing.append("FUSE and loop devices")
        if nbd:
            try:
                import nbd as _  # noqa: F401
            except ImportError:
                missing.append("the Python module nbd (python3-libnbd)")
        if missing:
            skip(f"needs {', '.join(missing)}")
        cdp = Path(os.environ.get("CDP", REPO / "target/release/cdp")).absolute()
        if not os.access(cdp, os.X_OK):
            sys.exit(f"{self.name}: no {cdp}; build it or set CDP")
        self.cdp_path = str(cdp)
        self.seed = int(os.environ.get("STORY_SEED", random.SystemRandom().randrange(1 << 32)))
        self.random = random.Random(self.seed)

    def __enter__(self):
        base = os.environ.get("STORY_DIR")
        self.dir = Path(tempfile.mkdtemp(prefix="cdp-story-", dir=base)).resolve()
        # The database's user has to reach what is in it.
        self.dir.chmod(0o711)
        signal.signal(signal.SIGALRM, self._too_long)
        signal.signal(signal.SIGTERM, self._ended)
        signal.alarm(self.seconds_max)
        print(f"{self.name}: seed {self.seed}", flush=True)
        return self

    def _too_long(self, *_):
        raise Failed(f"longer than {self.seconds_max} s")

    def _ended(self, *_):
        raise Failed("somebody ended it")

    def __exit__(self, kind, error, _trace):
        signal.alarm(0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        failed = kind is not None
        if failed:
            text = str(error) if isinstance(error, (Failed, KeyboardInterrupt)) else f"{kind.__name__}: {error}"
            print(f"{self.name}: FAILED: {text} (STORY_SEED={self.seed})", file=sys.stderr, flush=True)
            if not isinstance(error, Failed):
                import traceback

                traceback.print_exception(kind, error, _trace)
            self.on_exit(self._show_logs)
        while self._cleanups:
            function, arguments = self._cleanups.pop()
            try:
                function(*arguments)
            except Exception as problem:  # the rest has to be taken away all the same
                if not failed:
                    print(f"{self.name}: while cleaning up: {problem}", file=sys.stderr)
        left = self._sweep()
        if left and not failed:
            print(f"{self.name}: FAILED: left behind: {'; '.join(left)}", file=sys.stderr)
            failed = True
        if os.environ.get("STORY_KEEP"):
            print(f"{self.name}: kept {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)
        if not failed:
            print(f"{self.name}: passed, {time.monotonic() - self.began:.1f} s", flush=True)
        # Threads of a failed story may hang in a dead device.
        sys.stdout.flush()
        os._exit(1 if failed else 0)

    def on_exit(self, function, *arguments):
        """Runs at the end, the newest first."""
        self._cleanups.append((function, arguments))

    @contextlib.contextmanager
    def step(self, title):
        """Prints how long it took."""
        start = time.monotonic()
        yield
        print(f"- {title}: {time.monotonic() - start:.1f} s", flush=True)

    def run(self, *arguments, timeout=60, check=True, **options):
        """Runs a program to its end; its output is captured. A failure of it is one of the story."""
        arguments = [str(argument) for argument in arguments]
        options.setdefault("cwd", "/")
        options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
        if options["stdin"] is None:
            del options["stdin"]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, **options)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{' '.join(arguments)[:300]}: no end within {timeout} s; {late.stderr}") from None
        if check and done.returncode != 0:
            said = (done.stdout[-1500:] + done.stderr[-1500:]).strip()
            raise Failed(f"{' '.join(arguments)[:300]}: exit {done.returncode}: {said}")
        return done

    def start(self, *arguments, **options):
        """Starts a program that is killed at the end of the story if it still runs."""
        process = subprocess.Popen([str(argument) for argument in arguments], cwd="/", **options)
        self.on_exit(end, process)
        return process

    def log_file(self, name):
        """A file to append a program's talk to; its end is shown when the story fails."""
        return open(self.dir / f"{name}.log", "ab", buffering=0)

    def _show_logs(self):
        # Not deeper: a mounted volume without its server answers nothing, for ever.
        for log in sorted(self.dir.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)

    def _sweep(self):
        """Whatever still names our directory: processes, mounts, loop devices. Gives what it found."""
        ours = str(self.dir)
        found = []
        for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if ours in line and int(pid) != os.getpid():
                    found.append(f"process {pid} {line[:120]}")
                    # The one that waits for a server first: nothing below may wait for it.
                    os.kill(int(pid), signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for point in reversed([point for point in mounts if point.startswith(ours + "/")]):
            found.append(f"mount {point}")
            subprocess.run(["umount", "-l", point], capture_output=True)
        loops = subprocess.run(["losetup", "-nlO", "NAME,BACK-FILE"], capture_output=True, text=True).stdout
        for line in loops.splitlines():
            if ours in line:
                found.append(f"loop {line}")
                subprocess.run(["losetup", "-d", line.split()[0]], capture_output=True)
        return found


def end(process, seconds=10):
    """SIGTERM, and after a while SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def skip(why):
    """Ends the program: this machine cannot tell the story."""
    print(f"SKIP: {why}", flush=True)
    sys.exit(77)
