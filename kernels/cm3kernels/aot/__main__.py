"""`python -m cm3kernels.aot`."""

import sys

from cm3kernels.aot.command import main

if __name__ == "__main__":
    sys.exit(main())
