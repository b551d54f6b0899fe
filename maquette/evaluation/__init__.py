"""Metrics, the object benchmark, comparisons by people. Knows no method: what is measured comes in as a function."""
