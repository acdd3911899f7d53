"""The preset of most tests: so small that a test can run whole streams."""

from livetalk.distill.sizes import TINY

__all__ = ["TINY"]
