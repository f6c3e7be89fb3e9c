"""Looking inside: the report of a run, a traced text, what a model directory holds, and what this machine can do."""

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
