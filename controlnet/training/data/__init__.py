"""Data sets of pictures, hints and prompts: reading, checking, buckets, and loading that resumes where it
stopped.
"""
