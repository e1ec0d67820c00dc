"""Align language models to be safe and preferred, and show whether and why it worked.

Every verb is a function, with the keywords of the command line; each is imported when it is first
used, so that ``import trueline as tl`` is instant:

    run = tl.align("dpo.yaml", max_steps=100)
    tl.evaluate(run, benchmark="advbench=goals.csv", attack=["direct", "prefill"], judge="phrases")
    run.diagnose()
    tl.compare(base, run).to_frame()
    tl.report(run, base).save("report.html")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueline import data, diffusion, runs
    from trueline.config import AlignmentConfig
    from trueline.data import load_examples
    from trueline.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
    from trueline.runs.align import align
    from trueline.runs.bound import bound
    from trueline.runs.compare import compare
    from trueline.runs.demo import demo
    from trueline.runs.diagnose import diagnose
    from trueline.runs.evaluate import evaluate
    from trueline.runs.judges import calibrate_judge, judge
    from trueline.runs.live import watch
    from trueline.runs.report import report
    from trueline.runs.reproduce import reproduce
    from trueline.runs.run import Run
    from trueline.training import AlignmentTrainer

__version__ = "0.1.0"

_HOMES = {
    "AlignmentConfig": "trueline.config",
    "AlignmentTrainer": "trueline.training",
    "CompletionLogProbs": "trueline.logprobs",
    "PairedLogProbs": "trueline.logprobs",
    "Run": "trueline.runs.run",
    "UnpairedLogProbs": "trueline.logprobs",
    "align": "trueline.runs.align",
    "bound": "trueline.runs.bound",
    "calibrate_judge": "trueline.runs.judges",
    "compare": "trueline.runs.compare",
    "demo": "trueline.runs.demo",
    "diagnose": "trueline.runs.diagnose",
    "evaluate": "trueline.runs.evaluate",
    "judge": "trueline.runs.judges",
    "load_examples": "trueline.data",
    "report": "trueline.runs.report",
    "reproduce": "trueline.runs.reproduce",
    "watch": "trueline.runs.live",
}

__all__ = [
    "AlignmentConfig",
    "AlignmentTrainer",
    "CompletionLogProbs",
    "PairedLogProbs",
    "Run",
    "UnpairedLogProbs",
    "align",
    "bound",
    "calibrate_judge",
    "compare",
    "data",
    "demo",
    "diagnose",
    "diffusion",
    "evaluate",
    "judge",
    "load_examples",
    "report",
    "reproduce",
    "runs",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import trueline` itself is instant."""
    from importlib import import_module

    if name in ("data", "diffusion", "runs"):
        return import_module(f"trueline.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'trueline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
