"""Gradient entanglement in its smallest form, and what the pairwise normalized gradient does to it.

Chosen and rejected differ in one token and share the suffix behind it. Features are frozen and only
a softmax head learns, so every gradient has a closed form. The longer the suffix, the more the two
gradients overlap, and the more DPO lowers the log-prob of the chosen; normalized pairs raise it.

    python examples/entanglement_toy.py

The setting is that of a toy in Trueline's notes on Yuan et al. 2024 (arXiv 2410.13828), means of 20
seeds; the training itself is `trueline reproduce suffix-in-theory`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean

import torch

from trueline.reproduce.experiments.toy import make_pair, train

SEEDS = 20
Outcome = Mapping[str, float]


def outcome(suffix: int, *, normalize: bool) -> Outcome:
    """Means over seeds: the cosine before preference training, and what it changes (nats)."""
    found = [train(make_pair(suffix, seed), normalize=normalize) for seed in range(SEEDS)]
    return {name: mean(one[name] for one in found) for name in found[0]}


def table(suffixes: tuple[int, ...] = (0, 3, 15)) -> dict[int, tuple[Outcome, Outcome]]:
    """Suffix length to what DPO makes of it, as it is and normalized."""
    return {n: (outcome(n, normalize=False), outcome(n, normalize=True)) for n in suffixes}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)  # the matrices are tiny
    print("suffix   cosine   change of log pi(chosen), DPO   normalized")
    for suffix, (plain, other) in table().items():
        cosine, changes = plain["cosine"], [one["chosen change"] for one in (plain, other)]
        print(f"{suffix:6}   {cosine:+6.2f}   {changes[0]:+29.2f}   {changes[1]:+10.2f}")


if __name__ == "__main__":
    main()
