"""Write weights in another layout, type or format, or a control without its model.

python tool_convert.py models/control_sd15_seg.pth models/seg.safetensors --part control --dtype fp16
python tool_convert.py models/control_sd15_seg.pth models/seg_diffusers --layout diffusers
python tool_convert.py models/seg_diffusers models/seg_full.safetensors
"""

import sys

from controlnet.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
