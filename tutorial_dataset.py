"""The tutorial's data set. Draw it first: python -m controlnet.training.make_fill50k training/fill50k"""

from controlnet.training.data.dataset import ControlDataset


class MyDataset(ControlDataset):
    """fill50k: outlines of circles, to be filled as the prompt says."""

    def __init__(self, root: str = "./training/fill50k", **options):
        super().__init__(root, **options)
