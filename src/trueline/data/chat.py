"""Plain text as conversation, for models that speak through a chat template."""

from __future__ import annotations

from dataclasses import replace

from trueline.records import Example, Message, Text


def as_chat(example: Example) -> Example:
    """The example with its text prompt as a user's turn and its completions as the assistant's.

    A conversational example comes back as it is.

    Example:
        >>> from trueline.records import Completion
        >>> chat = as_chat(Example("Sky?", (Completion("Blue."),)))
        >>> chat.prompt[0].role, chat.completions[0].content[0].role
        ('user', 'assistant')
    """
    if example.conversational:
        return example
    reference = example.reference_prompt
    return replace(
        example,
        prompt=_turn("user", example.prompt),
        completions=tuple(
            replace(completion, content=_turn("assistant", completion.content))
            for completion in example.completions
        ),
        reference_prompt=None if reference is None else _turn("user", reference),
    )


def _turn(role: str, text: Text) -> tuple[Message, ...]:
    assert isinstance(text, str)
    return (Message(role, text),)
