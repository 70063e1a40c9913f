"""Placement: which dim lives on which mesh axis, and the collectives that follow."""

from fllmc.passes.place.place import Place

__all__ = ["Place"]
