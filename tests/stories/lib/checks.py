"""Checks of an NBD server: each has a line of its own, and one that fails does not stop the others."""

import queue
import threading

from story import want

MIB = 1 << 20
# Of the volumes `disk`, `odd` and `huge`.
SIZE, ODD, HUGE = 64 * MIB, MIB + 512, 64 << 40
MODES = ("simple", "structured", "extended")
results, late = [], []


def check(name, action, *arguments):
    """Runs one; prints how it went."""
    try:
        action(*arguments)
        results.append((name, None))
        print(f"  ok    {name}", flush=True)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:300]
        if isinstance(error, AssertionError):
            what += f" (line {error.__traceback__.tb_next.tb_lineno})"
        results.append((name, what))
        print(f"  FAIL  {name}: {what}", flush=True)


def later(name, action, *arguments):
    """Runs one beside the others; its line comes at the end."""
    outcome = queue.Queue()

    def run():
        try:
            action(*arguments)
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    late.append((name, outcome))


def collect():
    """The checks that ran beside the others."""
    for name, outcome in late:
        def ended(outcome=outcome):
            error = outcome.get(timeout=20)
            if error:
                raise error
        check(name, ended)
    late.clear()


def same(got, wanted, what=""):
    """They are equal, or it is one of a set."""
    if isinstance(wanted, set):
        want(got in wanted, f"{what} {got!r}, not one of {wanted!r}"[:250])
    else:
        want(got == wanted, f"{what} {got!r}, not {wanted!r}"[:250])
