"""One of the processes that `cm3 data encode --processes` starts: the same command for a part of the shards.

It ends with the process that started it, however that ends: it holds the other end of stdin.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # what is being written is written atomically: nothing is lost but a shard
    os._exit(1)


if __name__ == "__main__":
    # Ctrl-C is for the command, which ends its processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from cm3apps.cli.main import entry

    entry()
