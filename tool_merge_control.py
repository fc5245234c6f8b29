"""Put Stable Diffusion and a ControlNet that comes alone together into one file that every script here loads.

python tool_merge_control.py --base models/v1-5-pruned.ckpt --control models/control_v11p_sd15_seg.pth \\
    --output models/control_v11p_sd15_seg_full.pth
"""

import sys

from controlnet.commands.merge_control import main

if __name__ == "__main__":
    sys.exit(main())
