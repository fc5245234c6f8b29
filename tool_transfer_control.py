"""Move a control from the model it was trained on to another of the same architecture, by the offset of their
weights.

python tool_transfer_control.py --base models/v1-5-pruned.ckpt --control models/control_sd15_seg.pth \\
    --target models/anything-v3-full.safetensors --output models/control_any3_seg.pth
"""

import sys

from controlnet.commands.transfer_control import main

if __name__ == "__main__":
    sys.exit(main())
