"""What all findings of a run say together: what worked, and why."""

from trueline.diagnostics.verdict.finding import Sentence, verdict, verdict_finding

__all__ = ["Sentence", "verdict", "verdict_finding"]
