"""The other end of `worker.py`: how a script answers questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping


def say(value: object) -> None:
    """Give an answer."""
    print(json.dumps({"answer": value}), flush=True)


def answer_all(questions: Iterable[str], answers: Mapping[str, Callable[..., object]]) -> None:
    """Answer each question: a name, and arguments. What the system refuses is said, too."""
    for question in questions:
        name, *arguments = json.loads(question)
        try:
            value = answers[name](*arguments)
        except OSError as exc:
            print(json.dumps({"error": str(exc)}), flush=True)
        else:
            say(value)
