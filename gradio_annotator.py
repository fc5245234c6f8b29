"""Every detector on one picture, without a model: python gradio_annotator.py --help"""

from controlnet.page.annotator import main

if __name__ == "__main__":
    main()
