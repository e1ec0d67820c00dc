"""Several judges as one: what most of them say, and how each voted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueline.errors import UserError
from trueline.evaluation.judges.base import JUDGES, Judge, Measure, Verdict, checked, judge
from trueline.evaluation.labels import happened
from trueline.evaluation.plugins import parse_spec, split_unless_escaped


@dataclass(frozen=True)
class Ensemble:
    """Says of each answer what more than half of its judges say that tell it.

    Args:
        members: by label. A judge whose verdict makes no sense, or that does not tell a measure,
            has no vote on it; where no side has more than half, nothing is told.
    """

    members: Mapping[str, Judge]

    @property
    def measures(self) -> frozenset[Measure]:
        return frozenset(told for member in self.members.values() for told in member.measures)

    @property
    def facts(self) -> Mapping[str, Any]:
        members = {label: dict(member.facts) for label, member in self.members.items()}
        return {"judge": "ensemble", "members": members}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        said = {
            label: checked(member(prompts, responses), responses, label)
            for label, member in self.members.items()
        }
        return [
            _vote({label: own[i] for label, own in said.items()}) for i in range(len(responses))
        ]


def _vote(said: Mapping[str, Verdict]) -> Verdict:
    votes = [v for v in said.values() if not v.unparsable]
    kind = _most([v.kind for v in votes if v.kind]) or ""
    events = {
        name: _most([e for v in votes if (e := getattr(v, name)) is not None])
        for name in ("complied", "refused", "good")
    }
    for name, measure in (("complied", "asr"), ("refused", "over_refusal")):
        if kind:  # what the answer is decides for judges that do not tell this measure
            events[name] = happened(kind, measure)
    told = any(event is not None for event in events.values())
    why = ", ".join(f"{label}: {verdict.label}" for label, verdict in said.items())
    return Verdict(
        kind or ("undecided" if told else "unread"), kind=kind, why=why, unparsable=not told,
        sure=any(v.sure for v in votes), **events,
    )  # fmt: skip


def _most(votes: Sequence[Any]) -> Any:
    """What more than half say; None without such."""
    if not votes:
        return None
    said, count = Counter(votes).most_common(1)[0]
    return said if 2 * count > len(votes) else None


@judge("ensemble")
def ensemble(members: str) -> Judge:
    """Several judges as one, by majority: ``ensemble=phrases+learned=judge.json``.

    Name the same judges beside it, too, and their agreement is printed with kappa.

    Args:
        members: two judges or more, joined with ``+``, each ``name[=main]``.

    Raises:
        UserError: fewer than two, or one twice.
    """
    specs = [parse_spec(part) for part in split_unless_escaped(members, "+")]
    labels = [spec.label for spec in specs]
    if len(specs) < 2 or len(set(labels)) < len(labels):
        raise UserError(
            "an ensemble needs two different judges or more, such as "
            f"ensemble=phrases+learned=judge.json; got {members!r}"
        )
    return Ensemble({spec.label: JUDGES[spec.name].of(spec) for spec in specs})
