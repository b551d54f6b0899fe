"""The steps that methods are made of: look, fit, locate, make a surface."""
