"""`python -m loongforge`."""

import sys

from loongforge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
