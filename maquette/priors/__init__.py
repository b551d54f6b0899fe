"""Loaded score models with their conditions: what images are likely, given a picture, words and cameras."""
