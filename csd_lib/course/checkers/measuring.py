"""Checkers of the exercises in which something is predicted and then measured.

They get the notebook's session and the learner's numbers. Runs are kept, so the right numbers are
read from the same runs, in every mode; nothing depends on a quoted value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from csd_lib import drift
from csd_lib.course.checkers.judge import Mistake, exercise, numbers_in, same
from csd_lib.numerics import unit_length
from csd_lib.retrieval import embed, recall_at_k

Numbers = dict[Any, Any]
AS_SHARES = "These are shares between 0 and 1. Points and percent are 100 times as large."


def _judge(
    answer: Numbers,
    right: Callable[[], Numbers],
    mistakes: Mapping[str, Callable[[], Numbers]],
    tolerance: float = 0.06,
) -> None:
    """Compare filled-in numbers with the right ones; nothing is run before they are filled in.

    The right ones are not told, or nobody would have to measure. The default tolerance is rounding
    to a tenth of a percent: one test image of the digits is 0.33.
    """
    if not isinstance(answer, dict):
        raise Mistake(f"This is a {type(answer).__name__}; keep the dictionary and fill it.")
    found = [numbers_in(value) for value in answer.values()]
    if not found or any(n is None or not n.size or not np.isfinite(n).all() for n in found):
        raise Mistake("Not all numbers are there yet: put your code in place of the dots.")
    expected = right()
    alike = partial(same, tolerance=tolerance, relative=0)
    if alike(answer, expected):
        return
    for sentence, wrong in mistakes.items():
        if alike(answer, wrong()):
            raise Mistake(sentence)
    if answer.keys() != expected.keys():
        raise Mistake(f"It has the keys {list(answer)}, expected {list(expected)}.")
    far = [str(key) for key in expected if not alike(answer[key], expected[key])]
    raise Mistake(f"Not right yet: the runs say something else for {'; '.join(far)}.")


@exercise("4.5", "these are the points lost with each order.")
def check_class_orders(session: Any, lost: dict[int, float]) -> None:
    """Exercise 4.5: points of Recall@1 that fine-tuning loses on task 1, by seed of the order."""

    def points(
        before: tuple[int, int] = (0, 0),
        after: tuple[int, int] = (1, 0),
        gallery: str = "own",
        percent: float = 100,
    ) -> dict[int, float]:
        found = {}
        for order in (0, 1, 2):
            run = session.run("fine-tuning", class_order_seed=order)
            matrix = getattr(run.matrix, gallery)
            found[order] = percent * (matrix[before] - matrix[after])
        return found

    mistakes = {
        AS_SHARES: lambda: points(percent=1),
        "You subtract along a row: task 2 from task 1 at the same moment. Stay in the column "
        "of task 1 and go down.": lambda: points(after=(0, 1)),
        "The difference is the wrong way round: lost is before minus after.": (
            lambda: points(percent=-100)
        ),
        "This is the larger gallery, `.matrix.seen`. Asked for is `.matrix.own`.": (
            lambda: points(gallery="seen")
        ),
        "This is the column of task 2. Asked for is what was lost on task 1.": (
            lambda: points((0, 1), (1, 1))
        ),
    }
    _judge(lost, points, mistakes)


@exercise("2.4", "every recipe, every seed.")
def check_recipes(
    session: Any, known: dict[str, Sequence[float]], unknown: dict[str, Sequence[float]]
) -> None:
    """Exercise 2.4: Recall@1 on known and unknown classes after task 1, by recipe and seed."""

    def recalls(
        columns: tuple[int, int] = (0, 1), percent: int = 100, before: str = "initial-"
    ) -> Numbers:
        found: Numbers = {}
        for name in ("ce", "triplet", "ce+triplet"):
            rows = [session.run(before + name, seed).matrix.own[-1] for seed in session.seeds]
            for group, column in zip(("known", "unknown"), columns, strict=True):
                found[f"{group}, {name}"] = [percent * row[column] for row in rows]
        return found

    answer = known if isinstance(unknown, dict) else unknown
    if isinstance(answer, dict):
        answer = {
            f"{group}, {name}": values
            for group, by_name in (("known", known), ("unknown", unknown))
            for name, values in by_name.items()
        }
    mistakes = {
        AS_SHARES: lambda: recalls(percent=1),
        "Known and unknown have changed places.": lambda: recalls(columns=(1, 0)),
        "This is the network after task 2, which has learned all classes: put `initial-` "
        "before the recipe.": lambda: recalls(before=""),
    }
    _judge(answer, recalls, mistakes)


@exercise("3.4b", "both teachers, every seed.")
def check_teacher_statistics(session: Any, average: dict[str, Sequence[float]]) -> None:
    """Exercise 3.4b: what CSD reaches with each kind of teacher."""

    def averages(gallery: str = "seen", percent: int = 100, old_only: bool = False) -> Numbers:
        found = {}
        for kind in ("running", "batch"):
            runs = [session.run("csd", s, teacher_statistics=kind) for s in session.seeds]
            rows = [getattr(run.matrix, gallery)[-1] for run in runs]
            found[kind] = [percent * (row[0] if old_only else row.mean()) for row in rows]
        return found

    mistakes = {
        AS_SHARES: lambda: averages(percent=1),
        "This is the gallery with the task's own classes. Asked for is `.matrix.seen`.": (
            lambda: averages("own")
        ),
        "This is task 1 alone. Asked for is the mean over both tasks.": (
            lambda: averages(old_only=True)
        ),
    }
    _judge(average, averages, mistakes)


@exercise("5.4", "found on one half, measured on the other.")
def check_undone_rotation(session: Any, before: Sequence[float], after: Sequence[float]) -> None:
    """Exercise 5.4: search in the old gallery without and with the best rotation."""

    def recalls(
        part: slice | None = slice(0, None, 2), transpose: bool = False, scale: bool = True
    ) -> Numbers:
        found: Numbers = {"before": [], "after": []}
        for seed in session.seeds:
            run = session.run("fine-tuning", seed)
            task = run.tasks[0]
            old, new = (embed(m, task.test_images) for m in (run.models[0], run.models[-1]))
            if scale:
                old, new = unit_length(old), unit_length(new)
            turn = drift.best_rotation(old[part], new[part])
            gallery = (old[::2], task.test_labels[::2])
            queries, labels = new[1::2], task.test_labels[1::2]
            found["before"].append(recall_at_k(queries, labels, *gallery)[1])
            turned = queries @ (turn.T if transpose else turn)
            found["after"].append(recall_at_k(turned, labels, *gallery)[1])
        return found

    mistakes = {
        "You found R on all images, so it has seen those that it is measured on. Use the even "
        "half only.": lambda: recalls(slice(None)),
        "You found R on the odd half, on which it is measured. Use the even half.": (
            lambda: recalls(slice(1, None, 2))
        ),
        "R is the wrong way round: it turns old into new.": lambda: recalls(transpose=True),
        "You did not scale the features to length 1 before you looked for R.": (
            lambda: recalls(scale=False)
        ),
        "Without and with R have changed places.": (
            lambda: dict(zip(("after", "before"), recalls().values(), strict=True))
        ),
        "These are percent. Recall@1 is asked for as a share between 0 and 1.": (
            lambda: {name: [100 * v for v in values] for name, values in recalls().items()}
        ),
    }
    one_query = 0.01  # of 151; another order of operations may turn one
    _judge({"before": before, "after": after}, recalls, mistakes, one_query)
