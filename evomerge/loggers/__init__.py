"""Loggers: experiment trackers that a run may tell what happens, by name (docs/watching.md).

One file a tool, each of which enters itself into ``LOGGERS``; ``base`` holds the contract, ``background`` keeps a tool
from stopping or slowing a run.
"""

from evomerge.loggers.background import Background
from evomerge.loggers.base import LOGGERS, Ending, Logger, LoggerEntry, LoggerError, Step, ToolRun, missing

__all__ = ["LOGGERS", "Background", "Ending", "Logger", "LoggerEntry", "LoggerError", "Step", "ToolRun", "missing"]
