"""Segment a folder of pictures: python tool_annotate.py FOLDER OUT [--prompts]. See docs/detector.md."""

import sys

from controlnet.commands.annotate import main

if __name__ == "__main__":
    sys.exit(main())
