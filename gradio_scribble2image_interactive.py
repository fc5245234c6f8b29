"""The page, opened on scribble_interactive: python gradio_scribble2image_interactive.py --help"""

import config
from controlnet.page.app import main

if __name__ == "__main__":
    main(save_memory=config.save_memory, condition="scribble_interactive")
