"""Numbers recorded from reference implementations, recomputed by this package: `python -m tests.parity FOLDER`.

A *case* is one data file of a goldens folder. Each is recognised by what it holds, run through the product's own
classes (never a second implementation written for the test), and every expected tensor in it is compared. Sizes,
depths, step counts and settings are read from the files beside it, so folders recorded with other ones work too.
"""
