"""Typed blocks and checked sections to a program of the model level and the settings of a run."""
