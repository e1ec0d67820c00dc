"""Effective batches: which examples, and what is drawn for each.

Everything random of an example in a step comes from (seed, step, place in the effective batch): its
timestep, noise, latent, flip and caption dropout. So a step is the same however it is split into
micro-batches and processes, and a resumed run draws what the first would have drawn. Both images of
a pair share all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueline.batching import View as Layout
from trueline.diffusion.data.encode import Encodings
from trueline.diffusion.data.frames import View
from trueline.diffusion.data.load import ImageExample
from trueline.diffusion.models.families import Conditions, TextToImage
from trueline.diffusion.models.schedule import TimestepSampling
from trueline.errors import UserError


@dataclass(frozen=True)
class NoisyBatch:
    """Noised images, ready for the model.

    Args:
        noisy: (N, ...) x_t; of pairs the chosen and the rejected one alternate.
        index: (N,) timestep indices of the schedule.
        times: (N,) what the model is told.
        conditions: what it reads beside.
        target: (N, ...) what it is to predict.
        desirable: (N,) bool.
        names: of the examples, for errors.
    """

    noisy: Tensor
    index: Tensor
    times: Tensor
    conditions: Conditions
    target: Tensor
    desirable: Tensor
    names: Sequence[str]

    def to(self, device: torch.device) -> NoisyBatch:
        """The same on a device."""
        conditions = {name: value.to(device) for name, value in self.conditions.items()}
        return NoisyBatch(
            self.noisy.to(device), self.index.to(device), self.times.to(device), conditions,
            self.target.to(device), self.desirable.to(device), self.names,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.noisy)


@dataclass(frozen=True)
class Drawing:
    """What is drawn for an example.

    Args:
        seed: of the run.
        flip: mirror half of the examples.
        caption_dropout: share of examples shown without their caption.
        timesteps: how t is drawn.
    """

    seed: int = 0
    flip: bool = False
    caption_dropout: float = 0.0
    timesteps: TimestepSampling = "uniform"


@dataclass(frozen=True)
class Draw:
    """What was drawn for one example: a timestep, whether it is mirrored, whether its caption is
    dropped, and the generator that its noise comes from next."""

    time: int
    flip: bool
    dropped: bool
    rng: np.random.Generator


def fit_layout(examples: Sequence[ImageExample], layout: Layout) -> tuple[list[ImageExample], int]:
    """The examples an objective of this layout can use, and how many it cannot.

    Raises:
        UserError: a paired objective is given labeled images; nothing is left.
    """
    if layout == "paired" and not all(example.paired for example in examples):
        raise UserError(
            "the objective compares pairs, and the data has single labeled images; give pairs, or "
            "choose diffusion_kto"
        )
    if layout != "completion":
        return list(examples), 0
    kept = [example for example in examples if any(example.desirable)]
    if not kept:
        raise UserError("no example has a desirable image to imitate")
    return kept, len(examples) - len(kept)


class Batches:
    """The run's effective batches, and this process's share of them. With workers, a step's batches
    are encoded in a thread of their own while the step before it trains.

    Args:
        encodings: of the examples.
        model: whose schedule noises the images.
        drawing: what is drawn.
        layout: of the objective: pairs, labeled images, or images to imitate.
        size: examples in an effective batch, over all micro-batches and processes.
        micro: examples in a micro-batch.
        rank, ranks: this process among all.
    """

    def __init__(
        self,
        encodings: Encodings,
        model: TextToImage,
        drawing: Drawing,
        *,
        layout: Layout,
        size: int,
        micro: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.encodings = encodings
        self.model = model
        self.drawing = drawing
        self.layout = layout
        self.size, self.micro = size, micro
        self.rank, self.ranks = rank, ranks
        self._orders: dict[int, np.ndarray] = {}
        self._last = 0
        self._next: dict[int, Future[list[NoisyBatch]]] = {}
        self._beside: ThreadPoolExecutor | None = None
        self._ended = threading.Event()

    def examples(self, step: int) -> list[int]:
        """The effective batch's examples: the data in a new order each epoch, without a gap."""
        total = len(self.encodings.examples)
        return [
            int(self._epoch(position // total)[position % total])
            for position in range(step * self.size, (step + 1) * self.size)
        ]

    def total(self, step: int) -> int:
        """Losses in the effective batch: pairs, or images."""
        if self.layout == "paired":
            return self.size
        return sum(len(self.encodings.numbers(index)) for index in self.examples(step))

    def expect(self, first: int, last: int) -> None:
        """Have steps first to last, without the last, made ready ahead of their time: images read,
        and the next step's encoded. Who does it is at work until ``close``."""
        self._last = last
        self._ended.clear()
        if self.encodings.keeping.workers and self._beside is None:
            device = next(self.model.denoiser.parameters()).device
            self._beside = ThreadPoolExecutor(
                1, "encoding", initializer=_settle, initargs=(torch.get_num_threads(), device)
            )
        self.encodings.frames.expect(
            (step, View(index, number, draw.flip))
            for step in range(first, last)
            for place, index in self.mine(step)
            for draw in [self.draw(step, place)]
            for number in self.encodings.numbers(index)
        )

    def micro_batches(self, step: int) -> Iterator[NoisyBatch]:
        """This process's share, one micro-batch after another."""
        if self._beside is None:
            return self._made(step)
        ready = self._next.pop(step, None) or self._beside.submit(self._whole, step)
        self._next.clear()
        if step + 1 < self._last:
            self._next[step + 1] = self._beside.submit(self._whole, step + 1)
        return iter(ready.result())

    def close(self) -> None:
        """Send who reads and encodes ahead home, at the latest after the micro-batch at hand: left
        waiting, Python's exit would have them do all that they were ever asked for."""
        self._ended.set()
        if self._beside is not None:
            self._beside.shutdown(cancel_futures=True)
            self._beside = None
        self._next.clear()
        self.encodings.frames.close()

    def draw(self, step: int, place: int) -> Draw:
        """All that is random of the example at a place of the effective batch."""
        rng = np.random.default_rng([self.drawing.seed, step, place])
        time = self.model.schedule.draw(rng, self.drawing.timesteps)
        flip = bool(rng.random() < 0.5) and self.drawing.flip
        return Draw(time, flip, bool(rng.random() < self.drawing.caption_dropout), rng)

    def mine(self, step: int) -> list[tuple[int, int]]:
        """This process's places in the effective batch, with their examples."""
        return list(enumerate(self.examples(step)))[self.rank :: self.ranks]

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.drawing.seed, epoch])
            kept = [
                e for e in self._orders if abs(e - epoch) == 1
            ]  # who reads ahead is in the next
            self._orders = {e: self._orders[e] for e in kept}
            self._orders[epoch] = rng.permutation(len(self.encodings.examples))
        return self._orders[epoch]

    def _whole(self, step: int) -> list[NoisyBatch]:
        made = []
        with self.encodings.alone:
            for batch in self._made(step):
                if self._ended.is_set():
                    break
                made.append(batch)
        return made

    def _made(self, step: int) -> Iterator[NoisyBatch]:
        self.encodings.frames.begin(step)
        chosen = self.mine(step)
        for start in range(0, len(chosen), self.micro):
            yield self._noised(step, chosen[start : start + self.micro])

    def _noised(self, step: int, chosen: Sequence[tuple[int, int]]) -> NoisyBatch:
        schedule = self.model.schedule
        draws = [self.draw(step, place) for place, _ in chosen]
        found = [self.encodings.stand_in(index, draw.flip)
                 for (_, index), draw in zip(chosen, draws, strict=True)]  # fmt: skip
        examples = [self.encodings.examples[index] for index in found]
        captions = ["" if d.dropped else e.caption for d, e in zip(draws, examples, strict=True)]

        owner, views, desirable = [], [], []
        for row, index in enumerate(found):
            for image in self.encodings.numbers(index):
                owner.append(row)
                views.append(View(index, image, draws[row].flip))
                desirable.append(examples[row].desirable[image])
        latents = self.encodings.latents(views)
        mean = latents.pop("mean").float()
        logvar = latents.pop("logvar", None)
        shape = mean.shape[1:]
        normals = [_normals(draw.rng, shape, 1 if logvar is None else 2) for draw in draws]
        noise = torch.stack([normals[row][0] for row in owner])
        clean = mean
        if logvar is not None:
            own = torch.stack([normals[row][1] for row in owner])
            clean = mean + (logvar.float() / 2).exp() * own
        clean = self.model.scale(clean)
        at = torch.tensor([draws[row].time for row in owner])
        spoken = self.encodings.conditions(captions)
        conditions = {name: value[owner] for name, value in spoken.items()}
        first = [owner.index(row) for row in owner]  # a pair shares its chosen image's framing
        conditions |= {name: value[first] for name, value in latents.items()}
        return NoisyBatch(
            schedule.add_noise(clean, noise, at), at, schedule.times[at], conditions,
            schedule.target(clean, noise, at), torch.tensor(desirable),
            [example.images[0].name for example in examples],
        )  # fmt: skip


def _settle(threads: int, device: torch.device) -> None:
    """A thread that computes as its maker does: with as many threads, and on a GPU in a stream of
    its own, which does not wait for the training's."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def _normals(rng: np.random.Generator, shape: Sequence[int], count: int) -> Tensor:
    """(count, ...) standard normal numbers of the generator's stream."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return torch.randn((count, *shape), generator=generator)
