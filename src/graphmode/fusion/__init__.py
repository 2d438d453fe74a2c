"""Fusion: groups of ATen calls that one call of a device does, found by patterns that all devices share.

`patterns.py` says what is looked for, one table for each device says by what it is replaced, `fuse.py` does it. Only
where `max-autotune` allows other kernels than eager's.
"""
