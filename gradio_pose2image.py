"""The page, opened on openpose: python gradio_pose2image.py --help"""

import config
from controlnet.page.app import main

if __name__ == "__main__":
    main(save_memory=config.save_memory, condition="openpose")
