"""What scripts written for the original begin with: ``from share import *``.

It makes torchvision importable where that lacks its compiled operators, so that Lightning, open_clip and
torchvision may be imported afterwards in any order; lets transformers be quiet; and saves memory where
config.py says so.
"""

import config
from cldm.hack import disable_verbosity, enable_sliced_attention

disable_verbosity()
if config.save_memory:
    enable_sliced_attention()
