"""The model's arithmetic: one folder per operation, each with the plain PyTorch reference that *is* its definition.

An operation's door (`__init__.py`) checks the arguments, takes the fastest backend present and can be told to take
another by name. `backends()` lists what serves each operation on this machine.
"""

from cueva.kernels import attend, experts, route


def backends() -> dict[str, tuple[str, ...]]:
    """Return, per operation, the backends present here, the one taken by default first."""
    return {"attend": attend.BACKENDS, "experts": experts.backends(), "route": route.BACKENDS}


__all__ = ["attend", "backends", "experts", "route"]
