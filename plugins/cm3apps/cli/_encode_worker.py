"""A process started by `cm3 data encode --processes`: it runs the same command for a part of the shards.

It exits when the process that started it exits for any reason, because its stdin then closes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # files are written atomically, so that at most one shard is lost
    os._exit(1)


if __name__ == "__main__":
    # the parent handles Ctrl-C and stops its processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from cm3apps.cli.main import entry

    entry()
