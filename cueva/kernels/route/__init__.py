"""Choosing experts for a token: the door."""

from cueva.kernels.route.reference import Routing, route

BACKENDS = ("torch",)

__all__ = ["BACKENDS", "Routing", "route"]
