"""The evaluation pipeline: sample a checkpoint on fixed prompts, grade what it shows, say how sure the
grades are."""

from pathlib import Path

PACKAGE = Path(__file__).parent
"""The folder whose recipes/ ship with this pipeline."""
