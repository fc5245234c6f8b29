"""``python -m controlnet COMMAND``, or from another folder ``python /checkout/controlnet COMMAND``."""

import sys
from pathlib import Path

if not __package__:  # started by its folder, which Python then looks into instead of beside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from controlnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
