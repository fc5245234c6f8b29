"""Segmentation: a map of ADE20K classes."""
