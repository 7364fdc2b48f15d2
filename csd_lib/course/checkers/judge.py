"""How a learner's function is checked: run it on small cases, and name the mistake in it.

A checker holds a right answer and *known mistakes*, each a sentence with the wrong answer that it
names. If the learner's results differ from the right ones, they are compared with those of
every mistake; if they agree with one in all cases, that is the mistake. Otherwise the first case
that differs is shown.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, ParamSpec

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
# Arguments by a name that the learner will read.
Cases = dict[str, tuple[Any, ...]]
# Sentences that name a mistake, each with a function that makes it, or a list of several.
Mistakes = Mapping[str, Callable[..., Any] | list[Any]]

NOTHING = "It returns nothing yet: put your code in place of the dots, with a `return` at its end."


@dataclass(frozen=True)
class Verdict:
    """What a checker says; true if the exercise is solved."""

    exercise: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} Exercise {self.exercise}: {self.message}"

    def _repr_markdown_(self) -> str:
        mark = "✓ **solved**" if self.passed else "✗ **not yet**"
        return f"{mark} · Exercise {self.exercise}: {self.message}"


# The checkers by the exercise's number, and the last verdict on each exercise in this kernel.
CHECKERS: dict[str, Callable[..., Verdict]] = {}
VERDICTS: dict[str, Verdict] = {}


class Mistake(Exception):  # noqa: N818 - it is a finding about somebody's answer, not our error
    """Raised inside a checker; its text is what the learner reads."""


def exercise(number: str, praise: str) -> Callable[[Callable[P, None]], Callable[P, Verdict]]:
    """Turn a function that raises ``Mistake`` if it finds one into the checker of an exercise.

    An answer can be so far off that the check itself stops; that is no reason for a traceback.
    """

    def decorate(check: Callable[P, None]) -> Callable[P, Verdict]:
        @functools.wraps(check)
        def checker(*args: P.args, **kwargs: P.kwargs) -> Verdict:
            try:
                check(*args, **kwargs)
                found = Verdict(number, True, praise)
            except Mistake as mistake:
                found = Verdict(number, False, str(mistake))
            except (Exception, SystemExit) as error:
                found = Verdict(number, False, f"This cannot be checked: {_error(error)}.")
            VERDICTS[number] = found
            return found

        CHECKERS[number] = checker
        return checker

    return decorate


def call(function: Callable[..., Any], case: str, *args: Any) -> Any:
    """Call a learner's function on copies of the arguments.

    Raises:
        Mistake: if it raises, returns nothing, or changes what it was given.
    """
    given = copy.deepcopy(args)
    try:
        result = function(*given)
    except Mistake:
        raise
    except (Exception, SystemExit) as error:
        raise Mistake(f"{case}: it stops with {_error(error)}.") from error
    if result is None or result is Ellipsis:
        raise Mistake(NOTHING)
    for before, after in zip(args, given, strict=True):
        can_change = isinstance(before, Tensor | np.ndarray)
        if can_change and not same(after, before, tolerance=0):
            raise Mistake(
                f"{case}: it changes the tensor that it was given. Work on a copy, or use "
                f"functions without a trailing underscore."
            )
        if isinstance(before, dict) and before != after:
            raise Mistake(f"{case}: it changes the dictionary that it was given. Work on a copy.")
    return result


def compare(
    function: Callable[..., Any],
    right: Callable[..., Any],
    cases: Cases,
    mistakes: Mistakes,
    *,
    hints: dict[str, str] | None = None,
) -> None:
    """Compare a learner's function with the right one on every case.

    Args:
        function: the learner's.
        right: gives the right results.
        cases: arguments by a name that the learner will read; the simplest first.
        mistakes: known mistakes; the first that fits is reported.
        hints: what to say if no known mistake fits, by the first case that differs.

    Raises:
        Mistake: with the sentence of the mistake that gives the same results, or else with the
            first case that differs.
    """
    results = {name: call(function, name, *args) for name, args in cases.items()}
    expected = {name: right(*args) for name, args in cases.items()}
    for name, result in results.items():
        problem = _wrong_kind(result, expected[name])
        if problem:
            raise Mistake(f"{name}: it returns {problem}.")
    different = [n for n in cases if not same(results[n], expected[n])]
    if not different:
        return
    for sentence, ways in mistakes.items():
        for wrong in ways if isinstance(ways, list) else [ways]:
            outcomes = {name: _outcome(wrong, args) for name, args in cases.items()}
            if all(same(results[name], outcomes[name]) for name in cases):
                raise Mistake(f"{sentence} ({_seen(different[0], results, expected)})")
    first = different[0]
    hint = (hints or {}).get(first, "")
    if not hint and not _finite(results[first]) and _finite(expected[first]):
        hint = "Where does that come from? `0 / 0`, `-inf * 0` and the mean of nothing are NaN."
    raise Mistake(f"Not right yet. {_seen(first, results, expected)}. {hint}".strip())


def compare_gradients(
    function: Callable[..., Tensor], right: Callable[..., Tensor], args: Sequence[Any]
) -> None:
    """Check that gradient descent on the first argument would do what it does with the right loss.

    Raises:
        Mistake: if the result is cut off from the graph, or its gradient differs.
    """
    gradients = []
    for loss in (function, right):
        moving = args[0].clone().requires_grad_()
        value = loss(moving, *args[1:])
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise Mistake(
                "The value is right, but nothing can be learned from it: it is cut off from the "
                "graph. Leave out `.item()`, `.detach()`, `float(...)` and `torch.tensor(...)`."
            )
        gradients.append(torch.autograd.grad(value, moving)[0])
    if not same(*gradients):
        raise Mistake("The value is right, but its gradient is not: is a part of it detached?")


def same(
    result: Any, expected: Any, tolerance: float = 1e-4, relative: float | None = None
) -> bool:
    """Tell whether two results are equal up to rounding; NaN equals NaN.

    Args:
        result, expected: numbers, tensors, or lists and dictionaries of them.
        tolerance: largest absolute difference that counts as rounding.
        relative: what is added to it, as a share of the expected value; default: the same number.
    """
    relative = tolerance if relative is None else relative
    if isinstance(result, dict) and isinstance(expected, dict):
        keys = result.keys()
        return keys == expected.keys() and all(
            same(result[k], expected[k], tolerance, relative) for k in keys
        )
    if isinstance(result, list | tuple) and isinstance(expected, list | tuple):
        pairs = zip(result, expected, strict=False)
        return len(result) == len(expected) and all(
            same(a, b, tolerance, relative) for a, b in pairs
        )
    a, b = numbers_in(result), numbers_in(expected)
    if a is None or b is None:
        return False
    return a.shape == b.shape and np.allclose(a, b, rtol=relative, atol=tolerance, equal_nan=True)


def _error(error: BaseException) -> str:
    """Write an error so that it fits into a sentence, and explain one that says little."""
    text = f"`{' '.join(f'{type(error).__name__}: {error}'.split())[:200]}`"
    if re.search("shape of the mask|must match the size of tensor", str(error)):
        text += " (two tensors have different numbers of rows: if some were left out of one, leave "
        text += "them out of the other, and of its mask, too)"
    return text


def numbers_in(value: Any) -> np.ndarray | None:
    """Turn a number, tensor or list of numbers into a float64 array; None if they are none."""
    try:
        if isinstance(value, Tensor):
            return value.detach().cpu().double().numpy()
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _wrong_kind(result: Any, expected: Any) -> str | None:
    """Say in words if a result has another type or shape than expected."""
    if isinstance(expected, Tensor):
        if not isinstance(result, Tensor):
            return f"a {type(result).__name__}, but a tensor is expected"
        if result.shape != expected.shape:
            return f"a tensor of shape {list(result.shape)}, but {list(expected.shape)} is expected"
        if result.dtype != expected.dtype and not expected.is_floating_point():
            return f"a tensor of {result.dtype}, but {expected.dtype} is expected"
    elif isinstance(expected, float | int):
        if not isinstance(result, float | int | np.number | Tensor | np.ndarray):
            return f"a {type(result).__name__}, but a number is expected"
        numbers = numbers_in(result)
        if numbers is not None and numbers.size != 1:
            return f"{numbers.size} numbers, but a single one is expected"
    return None


def _outcome(wrong: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Result of a known mistake; the mistake itself may fail on a case, which matches nothing."""
    try:
        return wrong(*copy.deepcopy(args))
    except Exception:
        return object()


def _seen(name: str, results: dict[str, Any], expected: dict[str, Any]) -> str:
    return f"{name}: it returns {_short(results[name])}, expected {_short(expected[name])}"


def _short(value: Any) -> str:
    """Write a result so that it fits into a sentence."""
    if isinstance(value, dict) and not value:
        return "an empty dictionary"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_short(part)}" for key, part in value.items())
    if isinstance(value, tuple) and all(isinstance(part, Number) for part in value):
        return f"`({', '.join(f'{part:.4g}' for part in value)})`"
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, list) and all(isinstance(part, float) for part in value):
        value = np.array(value)
    if isinstance(value, np.ndarray | np.number | float):
        text = np.array2string(np.asarray(value), precision=4, threshold=12, separator=", ")
    else:
        text = str(value).replace("np.float64", "")
    text = " ".join(text.split())
    return f"`{text if len(text) <= 90 else text[:90] + ' …'}`"


def _finite(value: Any) -> bool:
    numbers = numbers_in(value)
    return numbers is None or bool(np.isfinite(numbers).all())
