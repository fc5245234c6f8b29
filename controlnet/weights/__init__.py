"""Weights for people: which definition belongs to a file, options that name files, where to get them."""
