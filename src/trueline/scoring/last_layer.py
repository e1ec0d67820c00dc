"""The last layer only where a scored token is predicted.

No later layer reads its output, so behind its keys and values only rows that predict a scored token
matter. Its row-wise modules (query and output projection, feed-forward) run on those rows and
leave zeros elsewhere; nobody reads the zeros. A module's forward method is replaced for a while,
whoever else has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

ATTENTION_NAMES = ("self_attn", "attn", "attention")
ROW_WISE = ("mlp", "feed_forward")
ROW_WISE_IN_ATTENTION = ("q_proj", "o_proj", "out_proj", "c_proj", "dense")


class LastLayer:
    """Restricts a decoder's last layer to the scored rows of a packed batch.

    Attaching changes nothing for ordinary calls: only a forward pass that carries a ``layout``
    is restricted. :meth:`detach` undoes it.

    Args:
        body: the decoder (a causal language model without its head).
    """

    def __init__(self, body: nn.Module) -> None:
        self._rows: Tensor | None = None
        self._patches: list[Patch] = []
        for name, module in _children(_last_layer(body)):
            if name in ROW_WISE:
                self._patches.append(Patch(module, self._restrict))
            elif name in ATTENTION_NAMES:
                self._patches.append(Patch(module, self._enter))
                for part, projection in module.named_children():
                    if part in ROW_WISE_IN_ATTENTION:
                        self._patches.append(Patch(projection, self._restrict))

    def detach(self) -> None:
        """Give the modules their own forward methods back."""
        while self._patches:
            self._patches.pop().undo()

    def _enter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The attention's forward, which learns the rows: it is given the layout, runs before the
        feed-forward, and runs again where gradient checkpointing computes the layer again."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            layout = kwargs.get("layout")
            self._rows = None if layout is None else layout.scored
            return original(*args, **kwargs)

        return forward

    def _restrict(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A row-wise module's forward on the rows alone: x (1, T, d) to (1, T, e)."""

        def forward(x: Tensor) -> Tensor:
            rows = self._rows
            if rows is None:
                return original(x)
            y = original(x[:, rows])
            return y.new_zeros(*x.shape[:-1], y.shape[-1]).index_copy_(1, rows, y)

        return forward


def _last_layer(body: nn.Module) -> nn.Module | None:
    count = getattr(getattr(body, "config", None), "num_hidden_layers", None)
    stacks = (m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    stack = next(stacks, None)
    return None if stack is None else stack[-1]


def _children(layer: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    return iter(()) if layer is None else layer.named_children()


class Patch:
    """Puts ``wrap(forward)`` in the place of a module's forward method, until :meth:`undo`.

    A patch on a patched module takes the newer one's place for a while and does not nest in it:
    two scorers on one model would otherwise restrict the same rows twice.

    Args:
        module: whose forward method is replaced.
        wrap: from the module's own forward method to what takes its place.
    """

    def __init__(self, module: nn.Module, wrap: Callable[[Any], Callable[..., Any]]) -> None:
        self.module = module
        self._previous = module.__dict__.get("forward")
        original = getattr(self._previous, "patched", None) or module.forward
        mine: Any = wrap(original)
        mine.patched = original
        self._mine = module.forward = mine

    def undo(self) -> None:
        """Bring back what was there; nothing where another has since taken this one's place."""
        if self.module.__dict__.get("forward") is not self._mine:
            return
        if self._previous is None:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self._previous
