"""What works on this machine, what does not, and what to do about it."""

from .ailments import Ailment, recognise
from .finding import Finding, Status
from .imports import Probe, find_imports, probe
from .machine import find_machine
from .packages import find_extras, find_settings, find_weights

__all__ = [
    "Ailment",
    "Finding",
    "Probe",
    "Status",
    "find_extras",
    "find_imports",
    "find_machine",
    "find_settings",
    "find_weights",
    "probe",
    "recognise",
]
