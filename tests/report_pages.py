"""A page with every kind of block, and the text an attacker would like to have in it."""

import json
import random

from trueline.report import (
    Answer,
    CurvePanel,
    Curves,
    Facts,
    Heatmap,
    Highlight,
    Highlights,
    Line,
    RateChart,
    Report,
    Sample,
    Samples,
    Scatter,
    ScatterPanel,
    Section,
    Table,
    Text,
    Verdict,
    Verdicts,
)
from trueline.results import Metric
from trueline.runs.record import Run

HOSTILE = (
    "</script><script>alert(1)</script><img src=\"https://evil.example/x\" onerror='alert(1)'>"
    '<a href="javascript:alert(1)">x</a>{{ 7 * 7 }}%{x}\u2028<!--'
    "**bold** [x](javascript:alert(1)) \u202egnp.exe"
)
RATE = Metric("asr", 0.03, 0.01, 0.085, 100, unit="rate")
BASE = Metric("asr", 0.88, 0.802, 0.93, 100, unit="rate")


def everything(text: str) -> Report:
    """Every kind of block, with ``text`` wherever a string may stand."""
    panel = ScatterPanel(
        text, [0.0, 1, 2, 3, 4, 5], [0.0, 1, 0, 1, 0, 2],
        [True, False] * 3, [text] * 6, text,
    )  # fmt: skip
    line = Line(text, [1, 2, 3], [0.7, 0.5, 0.4], "good")
    sample = Sample(text, [Answer(text, text, text, True), Answer("b", "")], True, text)
    blocks = [
        Text(text, note=True),
        Highlights([Highlight(text, RATE, BASE, "lower", text)]),
        Table(("", text), [[text, RATE], [text, None], [text, text]], text, text),
        RateChart([text, "b"], {text: [RATE, None], "m": [BASE, RATE]}, text, text),
        Scatter([panel, panel], text, text),
        Curves([CurvePanel(text, text, [line])], text, text, text),
        Curves([CurvePanel(text, text, [Line(text, [text], [1.0])], bars=True)], text, text, text),
        Heatmap([text, "a"], ["b", text], [[0.1, 0.2], [0.3, -0.4]], text, text, (text, text)),
        Verdicts([Verdict(text, text, text, text)], text),
        Table(("", text), [[text, RATE]], text, text, folded=True),
        Samples([sample], text, text),
        Facts(text, {text: {"a": text, "b": [text]}}, text),
    ]
    highlight = Highlight(text, RATE, BASE, "lower", text)
    return Report(text, text, [Section(text, text, blocks)] * 2, [highlight], text)


def evaluated(folder, seed, *, text="", label="", success=None, prompts=40):
    """An evaluation's folder: two attacks, safe prompts, a judge of each measure, odd flags."""
    draw = random.Random(seed)
    rows = []
    for i in range(prompts):
        for attack in ("direct", "prefill") if i < prompts // 2 else ("direct",):
            harmful = i < prompts // 2
            common = {
                "id": str(i), "benchmark": "mine" if i % 2 else "other", "attack": attack,
                "prompt": f"request {i} {text}", "answer": f"answer {i} {text}", "harmful": harmful,
                "why": f"rule {i} {text}", "truncated": draw.random() < 0.1,
                "category": "kettles" if i % 3 else "gardens",
            }  # fmt: skip
            if attack != "direct":
                common["asked"] = f"asked {i} {text}"
            for measure in ("asr",) if harmful else ("over_refusal", "utility"):
                happened = draw.random() < (0.7 if attack == "prefill" else 0.4)
                event = happened if success is None else success
                kind = label or draw.choice(["compliance", "refusal", "echo"])
                rows.append(
                    {**common, "measure": measure, "label": kind, "verdict": str(event),
                     "judge": "grader" if measure == "utility" else "phrases",
                     "success": None if not label and draw.random() < 0.05 else event}
                )  # fmt: skip
    from trueline.evaluation.harness.log import Judgement
    from trueline.evaluation.harness.run import Evaluation
    from trueline.evaluation.harness.summarize import findings

    run = Run.create(folder)
    (run.path / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.save(findings(Evaluation([Judgement.from_row(row) for row in rows], {}, [])))
    return run.path
