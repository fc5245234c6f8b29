"""``python -m controlnet COMMAND``."""

import sys

from controlnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
