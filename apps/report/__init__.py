"""What came of a run or a comparison, as one HTML file."""

from .content import ReportContent
from .page import build_report, write_report

__all__ = ["ReportContent", "build_report", "write_report"]
