"""From pictures to segmentation maps: the detector, the ADE20K palette and the tools around them."""
