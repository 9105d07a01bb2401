"""A PostgreSQL of a story: on any directory, with a load whose every commit is known with its times."""

import glob
import subprocess
import time

from story import Failed, end, want

LOAD = """\
\\set n :n + 1
\\set aid random(1, 10000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = 1 + :client_id;
INSERT INTO ledger VALUES (:client_id, :n, :delta, clock_timestamp());
COMMIT;
"""

# pgbench counts time in microseconds and lays the wall clock over it once, at its start.
CLOCK_SLACK_NS = 2_000_000


def programs():
    """Where the newest PostgreSQL is; None without one."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return found[-1] if found else None


class Postgres:
    """A cluster in a directory, owned by the user postgres."""

    def __init__(self, story, directory, name="postgres"):
        self.story, self.directory = story, directory
        self.bin = programs()
        self.sockets = story.dir / f"{name}-socket"
        self.log = story.dir / f"{name}.log"
        self.environment = {"PGHOST": str(self.sockets), "PGPORT": "5432", "PATH": "/usr/sbin:/usr/bin:/bin", "LC_ALL": "C"}
        story.run("install", "-d", "-o", "postgres", self.sockets)
        story.run("install", "-o", "postgres", "/dev/null", self.log)

    def _as_postgres(self, program, *arguments):
        return ["runuser", "-u", "postgres", "--", f"{self.bin}/{program}", *map(str, arguments)]

    def initialise(self):
        """A new cluster."""
        self.story.run("install", "-d", "-o", "postgres", "-m", "700", self.directory)
        self.story.run(*self._as_postgres("initdb", "-D", self.directory, "--auth=trust", "--no-sync", "--locale=C"), timeout=90)
        # What was only written is not there after a crash, on any disk.
        self.story.run("sync", "-f", self.directory)

    def start(self, timeout=60):
        """Starts it and waits until it answers, recovery included."""
        options = f"-k {self.sockets} -c listen_addresses='' -c shared_buffers=32MB -c max_connections=20"
        self.story.on_exit(self._end)
        self.story.run(
            *self._as_postgres("pg_ctl", "-D", self.directory, "-w", "-s", "-t", timeout, "-l", self.log, "-o", options, "start"),
            timeout=timeout + 10, env=self.environment,
        )

    def stop(self, how="fast"):
        """As an administrator does."""
        self.story.run(*self._as_postgres("pg_ctl", "-D", self.directory, "-w", "-s", "-m", how, "stop"), timeout=90)

    def _end(self):
        stop = self._as_postgres("pg_ctl", "-D", self.directory, "-w", "-s", "-t", 5, "-m", "immediate", "stop")
        subprocess.run(stop, cwd="/", capture_output=True, timeout=20)

    def sql(self, text, timeout=60):
        """Runs statements; gives the rows as lines."""
        arguments = self._as_postgres("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", text)
        return self.story.run(*arguments, env=self.environment, timeout=timeout).stdout.split()

    def prepare_load(self):
        """Tables for the load, and one to lose."""
        arguments = self._as_postgres("pgbench", "-i", "-I", "dtGp", "-q", "-s", 1, "postgres")
        self.story.run(*arguments, env=self.environment, timeout=90)
        self.sql(
            "INSERT INTO pgbench_tellers SELECT g, 1, 0 FROM generate_series(11, 20) g ON CONFLICT DO NOTHING;"
            "CREATE TABLE ledger (client int, n int, delta int, at timestamptz, PRIMARY KEY (client, n));"
            "CREATE TABLE customers AS SELECT g AS id, md5(g::text) AS name FROM generate_series(1, 20000) g;"
        )

    def start_load(self, seconds, clients=3, rate=None, first=1):
        """pgbench in the background; each client numbers its commits from `first`."""
        return Load(self, seconds, clients, rate, first)

    def commits(self):
        """What the ledger table holds."""
        rows = self.sql("SELECT client || ',' || n FROM ledger")
        return {tuple(map(int, row.split(","))) for row in rows}

    def check_sums(self):
        """No transaction is there in part."""
        (answer,) = self.sql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM ledger)"
            " AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM ledger)"
        )
        want(answer == "t", f"{self.directory}: a transaction is there in part")


class Load:
    """A running pgbench; when it has ended, a ledger of what it was told."""

    def __init__(self, postgres, seconds, clients, rate, first):
        self.story, self.first = postgres.story, first
        self.dir = self.story.dir / f"load-{time.monotonic_ns()}"
        self.story.run("install", "-d", "-o", "postgres", self.dir)
        script = self.dir / "script.sql"
        script.write_text(LOAD)
        script.chmod(0o644)
        arguments = postgres._as_postgres(
            "pgbench", "-n", "-f", script, "-c", clients, "-j", 1, "-T", seconds, "-D", f"n={first - 1}", "-l",
            f"--log-prefix={self.dir}/log", *(["-R", rate] if rate else []), "postgres",
        )
        self.process = subprocess.Popen(
            arguments, cwd=self.dir, env=postgres.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self.story.on_exit(end, self.process)
        self.began = time.time_ns()

    def finish(self, timeout=90):
        """Waits for its end; an error that a client saw fails the story. Gives what pgbench printed."""
        try:
            text, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"pgbench does not end within {timeout} s") from None
        self.ended = time.time_ns()
        want(self.process.returncode == 0, f"pgbench ended with {self.process.returncode}: {text[-1500:]}")
        want("number of failed transactions: 0 " in text, f"pgbench saw errors: {text[-1500:]}")
        self.ledger = {}
        for log in glob.glob(f"{self.dir}/log*"):
            with open(log) as lines:
                for line in lines:
                    client, number, latency_us, _, seconds, us = map(int, line.split()[:6])
                    end_ns = (seconds * 1_000_000 + us) * 1000
                    self.ledger[client, self.first - 1 + number] = (end_ns - latency_us * 1000, end_ns)
        want(self.ledger, "pgbench committed nothing")
        return text

    def longest_pause(self):
        """Seconds of the longest transaction."""
        return max(after - before for before, after in self.ledger.values()) / 1e9

    def check(self, commits, at):
        """Everything answered by `at` is there, and nothing that was begun later. Gives how many are there."""
        there = {key for key in self.ledger if key in commits}
        missing = [key for key, (_, after) in self.ledger.items() if after + CLOCK_SLACK_NS < at and key not in commits]
        early = [key for key in there if self.ledger[key][0] - CLOCK_SLACK_NS > at]
        want(not missing, f"at {at}: {len(missing)} answered commits are not there: {missing[:3]}")
        want(not early, f"at {at}: {len(early)} commits are there before they were begun: {early[:3]}")
        return len(there)
