"""The papers, one file each: a `Config`, its presets, and one function that reads like the paper."""
