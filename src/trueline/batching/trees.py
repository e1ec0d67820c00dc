"""Token trees: one prompt with its completions as branches; or, for KTO's baseline, with another
example's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from trueline.errors import UserError
from trueline.records import Example

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
View: TypeAlias = Literal["paired", "unpaired", "completion"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One completion's tokens. ``mask`` marks the scored ones (the assistant's own words)."""

    ids: Ids
    mask: Mask

    @property
    def length(self) -> int:
        """Number of scored tokens."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One prompt's tokens with its completions as branches; the unit a batch is made of.

    ``desirable`` labels each branch; a preference pair is always (chosen, rejected), that is
    (True, False). ``reference_prompt`` replaces the prompt for the reference model alone.
    """

    prompt: Ids
    branches: tuple[Branch, ...]
    desirable: tuple[bool, ...]
    reference_prompt: Ids | None = None
    id: str = ""

    def for_reference(self) -> TokenTree:
        """The tree as the reference model sees it."""
        if self.reference_prompt is None:
            return self
        return replace(self, prompt=self.reference_prompt, reference_prompt=None)

    @property
    def inputs(self) -> int:
        """Tokens a model reads: the prompt once, each branch but for its last token."""
        return len(self.prompt) + sum(len(branch.ids) - 1 for branch in self.branches)

    def split(self) -> tuple[TokenTree, ...]:
        """One tree a branch, each with the prompt of its own."""
        return tuple(self.keep((i,)) for i in range(len(self.branches)))

    def keep(self, branches: Sequence[int]) -> TokenTree:
        """The tree with only the given branches, in the given order."""
        return replace(
            self,
            branches=tuple(self.branches[i] for i in branches),
            desirable=tuple(self.desirable[i] for i in branches),
        )


def completion_key(prompt: Ids, branch: Branch) -> bytes:
    """16 bytes that identify a prompt, a completion and its mask by their content."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(len(prompt).to_bytes(8, "little"))
    for part in (prompt.astype(np.int32), branch.ids.astype(np.int32), branch.mask):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def within_budget(trees: Iterable[TokenTree], tokens: int) -> Iterator[list[TokenTree]]:
    """Trees in their order, in batches of at most ``tokens`` tokens; a longer tree goes alone.

    Raises:
        UserError: ``tokens`` is not positive.
    """
    if tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {tokens}")
    batch: list[TokenTree] = []
    size = 0
    for tree in trees:
        if batch and size + tree.inputs > tokens:
            yield batch
            batch, size = [], 0
        batch.append(tree)
        size += tree.inputs
    if batch:
        yield batch


def view(example: Example, tree: TokenTree, layout: View) -> Iterator[TokenTree]:
    """The training trees an encoded example yields under a layout.

    - ``paired``: one tree (chosen, rejected) for each preference pair.
    - ``unpaired``: one tree with every labeled completion; a pair labels its two completions, so
      both stay behind one shared prompt and every batch is balanced.
    - ``completion``: the completions to imitate: chosen, desirable, or all where none is labeled.

    Raises:
        UserError: the example cannot be seen that way; the message says what is missing.
    """
    if layout == "paired":
        if not example.pairs:
            raise UserError(
                f"{tree.id or 'example'}: this objective needs preference pairs (columns prompt, "
                "chosen, rejected) and the row has none; choose an unpaired objective (kto, bco, "
                "kldo) or give pairs"
            )
        for chosen, rejected in example.pairs:
            yield replace(tree.keep((chosen, rejected)), desirable=(True, False))
        return
    labels = {
        (i, c.desirable) for i, c in enumerate(example.completions) if c.desirable is not None
    }
    for chosen, rejected in example.pairs:
        labels |= {(chosen, True), (rejected, False)}
    if layout == "completion":
        wanted = sorted(i for i, desirable in labels if desirable)
        if not labels:
            wanted = list(range(len(example.completions)))
        if wanted:
            yield replace(tree.keep(wanted), desirable=(True,) * len(wanted))
        return
    if not labels:
        raise UserError(
            f"{tree.id or 'example'}: this objective needs labeled completions (columns prompt, "
            "completion, label, or preference pairs) and the row has none"
        )
    ordered = sorted(labels, key=lambda item: (item[0], not item[1]))
    yield replace(tree.keep([i for i, _ in ordered]), desirable=tuple(bool(d) for _, d in ordered))


def deranged(trees: Sequence[TokenTree]) -> list[int | None]:
    """For each tree of an effective batch, a partner with another prompt: the next such tree in the
    batch, cyclically. None where the batch has no other prompt; see :func:`mismatch`."""
    partners: list[int | None] = []
    for i, tree in enumerate(trees):
        following = (j % len(trees) for j in range(i + 1, i + len(trees)))
        partners.append(next((j for j in following if not _same_prompt(tree, trees[j])), None))
    return partners


def _same_prompt(a: TokenTree, b: TokenTree) -> bool:
    return np.array_equal(a.prompt, b.prompt)


def mismatch(
    trees: Sequence[TokenTree], everything: Sequence[TokenTree], rng: np.random.Generator
) -> list[TokenTree]:
    """Each tree's prompt with its partner's completions: the pairs behind KTO's baseline.

    A batch whose trees all share one prompt takes partners from the whole data set instead.

    Raises:
        UserError: the data set has only one prompt, so that no mismatched pair exists.
    """
    result = []
    for tree, partner in zip(trees, deranged(trees), strict=True):
        if partner is not None:
            other = trees[partner]
        else:
            start = int(rng.integers(len(everything)))
            candidates = (everything[(start + k) % len(everything)] for k in range(len(everything)))
            found = next((c for c in candidates if not _same_prompt(tree, c)), None)
            if found is None:
                raise UserError(
                    "kto compares completions with other examples' prompts, and the data has only "
                    "one prompt; use bco or kldo, or give more prompts"
                )
            other = found
        result.append(
            replace(tree, branches=other.branches, desirable=(False,) * len(other.branches))
        )
    return result
