"""The page, opened on fake_scribble: python gradio_fake_scribble2image.py --help"""

import config
from controlnet.page.app import main

if __name__ == "__main__":
    main(save_memory=config.save_memory, condition="fake_scribble")
