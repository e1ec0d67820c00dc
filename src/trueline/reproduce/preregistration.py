"""What will be measured and how it will be judged, written down before anything is run.

Each version has a page, made from its claims' own declarations. A judged run compares each design
with the page that was committed, and is refused where they differ.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline.errors import UserError
from trueline.reproduce.claim import PAPERS, Claim
from trueline.reproduce.outcomes import together
from trueline.reproduce.runs import EXPERIMENTS, Arm, Run
from trueline.reproduce.scales import FULL, Scale, plan
from trueline.reproduce.verdict import ALPHA, RULE
from trueline.reproduce.versions import (
    EARLY,
    STUDIES,
    TUNING,
    VERSIONS,
    Version,
    kept_options,
    named,
    of,
)


def design(claim: Claim, scale: Scale = FULL) -> dict[str, Any]:
    """All that decides what a claim's verdict will be, as plain data."""
    (version,) = of([claim.version])
    later = {"version": version.number, "revises": claim.revises} if version.number > 1 else {}
    return {
        "claim": claim.name,
        "paper": claim.paper,
        "statement": claim.statement,
        "measured": claim.measured,
        "parts": [
            {"effect": e.metric.name, "claimed": e.claimed, "unit": e.metric.unit, "exact": e.exact}
            for e in claim.parts
        ],
        "arms": [_arm(arm, scale) for arm in claim.arms],
        "seeds": list(version.seeds),
        "rule": RULE,
        **later,
    }


def _arm(arm: Arm, scale: Scale) -> dict[str, Any]:
    needed = plan([_alone(arm)], scale, [0])
    steps = [[run.experiment, EXPERIMENTS[run.experiment].version, dict(run.options)]
             for run in needed]  # fmt: skip
    return {"title": arm.title, "runs": steps}


def _alone(arm: Arm) -> Claim:
    return Claim("", "", "", "", [arm], lambda _: (), {}, "", False)


def digest(claim: Claim) -> str:
    """Sixteen hexadecimal digits that change whenever the design does."""
    text = json.dumps(design(claim), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def whole(digests: Mapping[str, str]) -> str:
    """The digest of all designs."""
    text = json.dumps(dict(digests), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


REGISTERED = re.compile(r"^Design of `([\w-]+)`: `([0-9a-f]{16})`$", re.MULTILINE)


@dataclass(frozen=True)
class Registered:
    """A version's committed page: each claim's design, and when it was committed."""

    version: Version
    designs: Mapping[str, str]
    commit: str
    date: str

    @property
    def hash(self) -> str:
        return whole(self.designs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready data."""
        return {"version": self.version.number, "seeds": list(self.version.seeds),
                "designs": self.hash, "commit": self.commit, "date": self.date}  # fmt: skip


def registered(claims: Sequence[Claim], studies: Path = STUDIES) -> list[Registered]:
    """The committed registrations of these claims' versions, where they hold them as they now are.

    Raises:
        UserError: there is no page, it is not committed as it stands, or a design differs.
    """
    return [
        _registered([claim for claim in claims if claim.version == version.number], version,
                    studies / version.file)
        for version in of(claim.version for claim in claims)
    ]  # fmt: skip


def _registered(claims: Sequence[Claim], version: Version, page: Path) -> Registered:
    if not page.is_file():
        raise UserError(f"a judged run needs {page}, which a checkout of the repository has")
    commit, date = committed(page)
    designs = designs_in(page.read_text("utf-8"))
    changed = [claim.name for claim in claims if designs.get(claim.name) != digest(claim)]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: the design differs from the one registered in {page.name} "
            f"(commit {commit}); a changed design is a new version there, with its reason and "
            "seeds of its own, and is committed before it is run"
        )
    return Registered(version, designs, commit, date)


def as_written(claims: Sequence[Claim], studies: Path = STUDIES) -> list[Registered]:
    """The registrations of these claims' versions as their pages have them; git is not asked."""
    return [
        Registered(version, designs_in((studies / version.file).read_text("utf-8")), "", "")
        for version in of(claim.version for claim in claims)
    ]


def designs_in(text: str) -> dict[str, str]:
    """Claim to digest, as a registration's page has them."""
    return dict(REGISTERED.findall(text))


def committed(page: Path) -> tuple[str, str]:
    """The last commit of a page, and when it was made.

    Raises:
        UserError: it is not committed as it stands.
    """

    def git(*words: str) -> str:
        given = ["git", *words, "--", page.name]
        try:
            done = subprocess.run(given, cwd=page.parent, capture_output=True, text=True, timeout=9)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"a judged run asks git about {page.name}: {error}") from None
        return done.stdout.strip()

    found = git("log", "-1", "--format=%h %cI")
    if not found or git("status", "--porcelain"):
        raise UserError(f"{page.name} is not committed as it stands; commit it, then run")
    commit, date = found.split()
    return commit, date


def detectable(seeds: int, parts: int, claims: int, power: float = 0.8) -> float:
    """The effect, in deviations of a seed's difference, that a claim of so many parts shows with
    this power, where its paper's family has so many claims and it is Holm's first.

    All parts must hold: each is found with chance power^(1 / parts), as if independent.

    Example:
        >>> round(detectable(20, 1, 1), 2), round(detectable(12, 3, 5), 2)
        (0.66, 1.38)
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    wanted, limit = power ** (1 / parts), float(t.ppf(1 - ALPHA / claims / 2, seeds - 1))

    def missing(effect: float) -> float:
        return float(nct.sf(limit, seeds - 1, effect * seeds**0.5)) - wanted

    return float(brentq(missing, 0.01, 20))


HEAD = """\
# Preregistration, version {number}

Written by `python tools/paper_claims.py --register` from the claims' declarations in
`src/trueline/reproduce/claims`; do not edit by hand. Designs: `{hash}`.

{reason} What is here was fixed before any
of its judged runs was begun; `trueline reproduce --judged` refuses to run where a claim's design is
another than the committed one, and names the commit in what it writes.

## What holds for all claims

- **Seeds.** {count} seeds, {first} to {last}, that nobody has looked at. Designs were tuned on
  seeds {tuning} and up (and, before there was any registration, on 0 to 4, as the measured page
  tells). {left}
- **The unit** is the seed: another world, other data, another base model. Arms are compared at
  the same seed.
- **Test.** {rule}
- **One look.** A paper's claims are judged once, when all of its runs at all {count} seeds are
  there (an exact claim, when its own are); before that `trueline reproduce --judged` shows how many
  are, and no effect. Runs are done paper by paper, so that papers are judged at different times,
  each once. A run that fails is done again; where it fails again for the same reason, its seed is
  lost to the claims that need it, and the page says so.
- **Collapse.** A model that refuses over half of the held-out safe requests, or answers under half
  of them right, has collapsed. Where a claim's text says so, two arms are compared at the last
  stage at which neither has; a seed without such a stage is left out, and the number of seeds that
  are left stands beside the effect.
- **Results.** Each run is a line of `studies/results/judged-{number}.jsonl`, and the page is a
  function of these lines:
  `trueline reproduce --judged {kept}`.
- **A change** afterwards is a new version with its reason and with seeds that are still unseen; the
  verdicts of both are shown. A claim that fails is printed as failed.

## Power

{count} seeds were chosen by what two processor cores can do ({minutes:.0f} processor minutes in
all, as estimated); an effect has to be large to be found. The smallest that is found with a chance
of 80%, in standard deviations of a seed's own difference, where the claim is the first of its
family in Holm's order (the strictest step) and all of its parts must hold, is given with each
claim. What is smaller will most likely be called undecided, which is not the same as absent.
"""


LATER = """
- **Before it.** What {before} had judged until then, on other seeds, was known when these
  designs were made. {its} verdicts stand, and are shown with these. What is said here of a paper's
  claims is said of those of this version: they are one family, and are judged when their own runs
  are there. A claim that puts an earlier one anew names it."""


def page_text(version: Version, claims: Sequence[Claim]) -> str:
    """A version's preregistration as Markdown; claims of other versions are left out."""
    claims = [claim for claim in claims if claim.version == version.number]
    seeds, earlier = version.seeds, [one for one in VERSIONS if one.number <= version.number]
    runs = plan(claims, FULL, seeds)
    minutes = sum(FULL.cost(run) for run in runs)
    digests = {claim.name: digest(claim) for claim in claims}
    left = "No seed is kept back for a version after this one."
    if seeds[-1] < EARLY[-1]:
        left = (f"The seeds from {seeds[-1] + 1} to {EARLY[-1]} are kept back for a version "
                "after this one.")  # fmt: skip
    if version.number > 1:
        left += LATER.format(before=named(earlier[:-1]),
                             its="Their" if len(earlier) > 2 else "Its")  # fmt: skip
    lines = [
        HEAD.format(
            number=version.number, hash=whole(digests), reason=version.reason, count=len(seeds),
            first=seeds[0], last=seeds[-1], left=left, tuning=TUNING, rule=RULE, minutes=minutes,
            kept=kept_options(earlier),
        )
    ]  # fmt: skip
    for paper, title in PAPERS.items():
        own = [claim for claim in claims if claim.paper == paper]
        if own:
            family = sum(not claim.arithmetic for claim in own)
            lines += [f"## {paper}", "", f"{title}. A family of {family} claims.", ""]
            for claim in own:
                lines += _claim_lines(claim, family, digests[claim.name])
    lines += ["## Versions", ""]
    lines += [f"- {v.number}: seeds {v.seeds[0]} to {v.seeds[-1]}. {v.reason}" for v in earlier]
    return "\n".join(lines) + "\n"


def _claim_lines(claim: Claim, family: int, code: str) -> list[str]:
    parts = claim.parts
    if claim.arithmetic:
        found = "Exact: the worst of all seeds is compared, and nothing is left to chance."
    else:
        (version,) = of([claim.version])
        smallest = detectable(len(version.seeds), len(parts), family)
        found = f"Found with a chance of 80%: {smallest:.2f} deviations."
    these = "each of these is" if len(parts) > 1 else "this is"
    revised = [f"Puts `{claim.revises}` anew.", ""] if claim.revises else []
    lines = [f"### {claim.name}", "", claim.statement, "", *revised,
             f"Measured: {claim.measured}", "", f"Supported if {these}:", ""]  # fmt: skip
    lines += [f"- {e.metric.name}: {e.claimed}" + (f" ({e.metric.unit})" if e.metric.unit else "")
              for e in parts]  # fmt: skip
    lines += ["", f"{found} Arms:", ""]
    for arm in claim.arms:
        run = FULL.run(arm, 0)
        lines.append(f"- {arm.title}: `{run.experiment}` {json.dumps(run.options, sort_keys=True)}")
    return [*lines, "", f"Design of `{claim.name}`: `{code}`", ""]


def judged_seeds() -> dict[int, Sequence[int]]:
    """Each version's own."""
    return {version.number: version.seeds for version in VERSIONS}


def judged_plan(claims: Sequence[Claim]) -> list[Run]:
    """All runs of the judged seeds, version by version; in each exact claims first, then paper by
    paper, the cheapest first."""
    groups = [
        (own[0].version, plan(own, FULL, judged_seeds()[own[0].version]))
        for own in together(claims)
    ]
    groups.sort(key=lambda one: (one[0], sum(FULL.cost(r) for r in one[1])))
    return list({run.key: run for _, runs in groups for run in runs}.values())
