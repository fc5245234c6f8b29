"""The drawn world, and the recipe of the embedded model that knows it. Only commands import this package."""
