"""The page, opened on normal: python gradio_normal2image.py --help"""

import config
from controlnet.page.app import main

if __name__ == "__main__":
    main(save_memory=config.save_memory, condition="normal")
