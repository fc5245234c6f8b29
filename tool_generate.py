"""Pictures from pictures, maps or files of requests, without a page.

python tool_generate.py photo.jpg results --prompt "a house by a lake"
python tool_generate.py photos results --prompt "winter" --devices 4
python tool_generate.py requests.jsonl results
python tool_generate.py results/photo.png again --from-image
python tool_generate.py photo.jpg results --rows "prompt=a house|a lake at night" --columns seed=1-4

A line of requests.jsonl is {"image": "a.jpg", "prompt": "a house", "seed": 3}, or with "map" instead of
"image".
"""

import sys

import config
from controlnet.commands.generate import main

if __name__ == "__main__":
    sys.exit(main(save_memory=config.save_memory))
