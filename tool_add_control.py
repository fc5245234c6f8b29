"""Give Stable Diffusion a control copy of its encoder, to train on.

python tool_add_control.py models/v1-5-pruned.ckpt models/control_sd15_ini.ckpt
python tool_add_control.py models/v2-1_512-ema-pruned.ckpt models/control_sd21_ini.ckpt --config
models/cldm_v21.yaml
"""

import sys

from controlnet.commands.add_control import main

if __name__ == "__main__":
    sys.exit(main())
