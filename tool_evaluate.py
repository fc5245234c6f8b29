"""Measure a model: does it keep to map and prompt? python tool_evaluate.py --count 100 --json scores.json

Scenes are drawn from seeds that training never saw, or read from a folder like those that tutorial_train.py
reads. The same command measures Stable Diffusion with the ADE20K detector: --model sd15 --folder FOLDER.
"""

import sys

from controlnet.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
