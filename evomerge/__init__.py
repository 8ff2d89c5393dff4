"""evomerge: evolutionary search for language-model merges."""

__version__ = "0.1.0"
