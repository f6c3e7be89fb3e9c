"""Looking inside: the report of a run, a traced text, what a model directory holds, and what this machine can do.

Each name is imported when it is first asked for, and torch only where it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cueva.study.doctor import examine, format_examination
    from cueva.study.inspect import format_inspection, inspect_model
    from cueva.study.records import RunRecords, read_records
    from cueva.study.report import write_report
    from cueva.study.trace import Trace, TraceToken, make_trace

__all__ = [
    "RunRecords",
    "Trace",
    "TraceToken",
    "examine",
    "format_examination",
    "format_inspection",
    "inspect_model",
    "make_trace",
    "read_records",
    "write_report",
]

_HOME = {
    "examine": "doctor",
    "format_examination": "doctor",
    "format_inspection": "inspect",
    "inspect_model": "inspect",
    "RunRecords": "records",
    "read_records": "records",
    "write_report": "report",
    "Trace": "trace",
    "TraceToken": "trace",
    "make_trace": "trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cueva.study' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cueva.study.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
