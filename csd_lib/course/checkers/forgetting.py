"""Checkers of the exercises on retrieval forgetting."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csd_lib import retrieval
from csd_lib.course.checkers.cases import (
    NOT_SCALED_DISTANCE,
    ZERO_FOR_LEFT_OUT,
    on_circle,
    random_features,
    random_labels,
)
from csd_lib.course.checkers.judge import Mistake, Mistakes, compare, exercise
from csd_lib.numerics import unit_length

Results = dict[str, dict[int, float]]  # a recipe's value for each seed


@exercise("4.1", "ties, lengths and lonely queries are treated as the text says.")
def check_recall_at_k(recall_at_k: Callable[[Tensor, Tensor, int], float]) -> None:
    """Exercise 4.1: Recall@K, with ties."""

    def right(features: Tensor, labels: Tensor, k: int) -> float:
        return float(retrieval.recall_at_k(features, labels, ks=(k,))[k])

    def variant(
        features: Tensor,
        labels: Tensor,
        k: int,
        scale: bool = True,
        itself: bool = False,
        ties_miss: bool = False,
        singletons_miss: bool = False,
        precision: bool = False,
        distance: bool = False,
        itself_at: float = -torch.inf,  # the query's similarity with itself
        wrong_at: float = -torch.inf,  # that of wrong images, where the best right one is sought
    ) -> float:
        f = unit_length(features.double()) if scale else features.double()
        similarity = ((-torch.cdist(f, f) if distance else f @ f.T) * 2**24).round()
        same_class = labels[:, None] == labels[None]
        if not itself:
            similarity.fill_diagonal_(itself_at)
            same_class = same_class & ~torch.eye(len(labels), dtype=torch.bool)
        can_hit = same_class.any(dim=1)
        if precision:
            found = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
            return same_class.gather(1, found)[can_hit].double().mean().item()
        best = similarity.masked_fill(~same_class, wrong_at).amax(dim=1, keepdim=True)
        sooner = (similarity >= best if ties_miss else similarity > best) & ~same_class
        hit = (sooner.sum(dim=1) < k) & can_hit
        return (hit if singletons_miss else hit[can_hit]).double().mean().item()

    def by_rank(
        features: Tensor, labels: Tensor, k: int, itself: bool = False, dropped: int = 0
    ) -> float:
        f = unit_length(features)
        similarity = f @ f.T
        if not itself:
            similarity.fill_diagonal_(-torch.inf)
        found = similarity.topk(min(k + dropped, len(labels)), dim=1).indices[:, dropped:]
        hit = (labels[found] == labels[:, None]).any(dim=1)
        counted = (labels[:, None] == labels[None]).sum(dim=1) > 1
        return hit[counted].double().mean().item()

    def lone_images_dropped(f: Tensor, y: Tensor, k: int) -> float:
        kept = (y[:, None] == y[None]).sum(dim=1) > 1
        return right(f[kept], y[kept], k)

    circle = (on_circle(0, 20, 100, 30, 80, 91), torch.tensor([0, 0, 0, 1, 1, 1]))
    axes, pairs = torch.eye(4)[[0, 0, 0, 1, 1, 2]], torch.tensor([0, 0, 1, 1, 2, 2])
    equal = (torch.ones(10, 3), torch.arange(10) % 5)
    random = (random_features(40, 4), random_labels(40, 5))
    lengths = random[0] * torch.linspace(0.2, 5, 40)[:, None]
    cases = {
        "six features on a circle, K = 1": (*circle, 1),
        "six features on a circle, K = 2": (*circle, 2),
        "40 random features, K = 3": (*random, 3),
        "features of other lengths, K = 1": (lengths, random[1], 1),
        "a right and a wrong image equally near, K = 1": (axes, pairs, 1),
        "ten images with one and the same feature, K = 1": (*equal, 1),
        "a class with one image only, K = 1": (circle[0], torch.tensor([0, 0, 0, 1, 1, 2]), 1),
        "right images at more than 90 degrees, K = 1": (on_circle(0, 100, 60, 205), pairs[:4], 1),
        "the nearest image is alone in its class, K = 1": (on_circle(0, 20, 12), pairs[:3], 1),
        "at 0, 120, 200 and 235 degrees, K = 1": (on_circle(0, 120, 200, 235), pairs[:4], 1),
    }
    mistakes: Mistakes = {
        "Every query finds itself, so you get 100 %. Leave it out of its own search.": (
            [partial(variant, itself=True), partial(by_rank, itself=True)]
        ),
        ZERO_FOR_LEFT_OUT: [partial(variant, wrong_at=0.0), partial(variant, itself_at=0.0)],
        "K is off by one: a query is a hit if *fewer than K* wrong images come first.": (
            lambda f, y, k: variant(f, y, k + 1)
        ),
        "This is the share of right images among the K nearest (precision). Recall@K asks "
        "whether there is at least one.": partial(variant, precision=True),
        "Only ties are wrong. `topk` and `sort` pick one of equals as they like; count the "
        "wrong images that are *strictly* more similar than the best right one.": by_rank,
        "You leave out the first of the K + 1 nearest, as if it were always the query. "
        "Among equals it need not be: when all features are the same, every query is a hit.": (
            partial(by_rank, itself=True, dropped=1)
        ),
        "You count ties as misses. A wrong image must be *strictly* nearer to come first.": (
            partial(variant, ties_miss=True)
        ),
        "You did not scale the features to length 1: long ones are found too often.": (
            partial(variant, scale=False)
        ),
        NOT_SCALED_DISTANCE: partial(variant, scale=False, distance=True),
        "You count a query as a miss if its class has no other image. It cannot hit: leave it "
        "out of the mean.": partial(variant, singletons_miss=True),
        "An image that is alone in its class is no query, but it stays in the gallery: it can "
        "come too early.": lone_images_dropped,
        "This is in percent. A share between 0 and 1 is asked for.": lambda *a: 100 * right(*a),
    }
    hints = {
        "a right and a wrong image equally near, K = 1": "Among equals, `topk` and `sort` "
        "pick as they like. Count what is *strictly* more similar than the best right image.",
        "ten images with one and the same feature, K = 1": "Nothing is strictly more similar than "
        "anything else here, so every query is a hit.",
    }
    compare(recall_at_k, right, cases, mistakes, hints=hints)


@exercise("4.2", "best earlier value minus the last, old tasks only.")
def check_forgetting(forgetting: Callable[[np.ndarray], float]) -> None:
    """Exercise 4.2: forgetting from a task x task matrix."""
    rng = np.random.default_rng(0)
    rises = np.array([[0.7, 0.6, 0.2], [0.9, 0.5, 0.3], [0.6, 0.8, 0.95]])
    early = np.array([[0.6, 0.9, 0.8], [0.8, 0.7, 0.9], [0.5, 0.6, 0.7]])
    cases = {
        "two tasks": (np.array([[0.9, 0.4], [0.7, 0.8]]),),
        "two tasks, and more is gained than lost": (np.array([[0.6, 0.4], [0.8, 0.7]]),),
        "three tasks, one value rises": (rises,),
        "three tasks, found well before they were learned": (early,),
        "five random tasks": (rng.random((5, 5)),),
    }
    right = retrieval.forgetting

    def variant(flaws: Sequence[str], m: np.ndarray) -> float:
        m = m.T if "transposed" in flaws else m
        tasks = len(m) if "last task" in flaws else len(m) - 1
        lost = []
        for j in range(tasks):
            first = 0 if "above" in flaws else j
            end = len(m) if "last row" in flaws or first == len(m) - 1 else len(m) - 1
            best = m[j, j] if "diagonal" in flaws else m[first:end, j].max()
            lost.append(best - m[-1, j])
        value = np.sum(lost) if "sum" in flaws else np.mean(lost)
        return float(value * (-1 if "sign" in flaws else 1) * (100 if "percent" in flaws else 1))

    flaws = {
        "The sign is the wrong way round: forgetting is positive if something was lost.": "sign",
        "This is the negative of backward transfer: you compare the end with the diagonal. "
        "Forgetting takes the *best* earlier value.": "diagonal",
        "Your maximum includes the last row, or you clamp at 0, so a gain can never show as "
        "negative forgetting.": "last row",
        "Your maximum includes rows from before the task was learned (above the diagonal).": (
            "above"
        ),
        "The last task counts too, though nothing came after it; you divide by T. Leave it out "
        "and divide by T − 1.": "last task",
        "Rows and columns have changed places: a row is a moment, a column a task.": "transposed",
        "You add up over the tasks. Take the mean.": "sum",
        "This is in percent. Keep the unit of the matrix.": "percent",
    }
    mistakes: dict[str, Any] = {
        "This is backward transfer.": retrieval.backward_transfer,
        "You put 0 in the place of a negative value. If more is gained than lost, forgetting "
        "is negative.": lambda m: max(0.0, right(m)),
        "The sign is lost. If more is gained than lost, forgetting is negative.": (
            lambda m: abs(right(m))
        ),
        "The sign of each task's value is lost. What a task has gained counts as negative.": (
            lambda m: np.mean([abs(m[j:-1, j].max() - m[-1, j]) for j in range(len(m) - 1)])
        ),
        "You take the best of the whole column, and of every task. Only the rows from the one in "
        "which a task was learned to the last but one count, and the last task does not.": [
            lambda m: (m.max(axis=0) - m[-1]).mean(),
            lambda m: (m.max(axis=0) - m[-1]).sum() / (len(m) - 1),
        ],
    }
    mistakes |= {sentence: partial(variant, [flaw]) for sentence, flaw in flaws.items()}
    mistakes |= {
        f"{one} And a second thing: {other}": partial(variant, [flaws[one], flaws[other]])
        for one, other in combinations(flaws, 2)
    }
    compare(forgetting, right, cases, mistakes)


@exercise("4.3", "old queries search everything seen so far, and nothing else.")
def check_recall_in_gallery(
    recall_in_gallery: Callable[[Tensor, Tensor, int, int, int], float],
) -> None:
    """Exercise 4.3: queries of one task, a gallery with all classes seen so far."""

    def variant(
        features: Tensor,
        labels: Tensor,
        first: int,
        end: int,
        seen: int,
        own: bool = False,
        scale: bool = True,
        distance: bool = False,
    ) -> float:
        is_query = (labels >= first) & (labels < end)
        in_gallery = is_query if own else labels < seen
        f, y = features[in_gallery], labels[in_gallery]
        f = unit_length(f) if scale else f
        similarity = -torch.cdist(f, f) if distance else f @ f.T
        found = similarity.fill_diagonal_(-torch.inf).argmax(dim=1)
        return (y[found] == y)[is_query[in_gallery]].double().mean().item()

    def rectangle(f: Tensor, y: Tensor, first: int, end: int, seen: int) -> float:
        is_query, arrived = (y >= first) & (y < end), y < seen
        similarity = unit_length(f[is_query]) @ unit_length(f[arrived]).T
        found = y[arrived][similarity.fill_diagonal_(-torch.inf).argmax(dim=1)]
        return (found == y[is_query]).double().mean().item()

    def answer(*case: Any) -> float:
        try:
            return recall_in_gallery(*case)
        except (IndexError, RuntimeError) as error:
            empty = re.search("argm|amax|amin|topk|empty|selected index k", str(error))
            if not empty or case[4] > case[3]:
                raise
            raise Mistake(
                "After its own task a query finds an empty gallery. The images of the query's task "
                "belong into it, but for the query itself."
            ) from error

    centers = random_features(6, 5, seed=3)
    labels = random_labels(150, 6, seed=4)
    features = centers[labels] + 0.9 * random_features(150, 5, seed=5)
    cases = {
        "task 1 (labels 0, 1) after task 2, 4 of 6 classes seen": (features, labels, 0, 2, 4),
        "task 2 (labels 2, 3) after task 2": (features, labels, 2, 4, 4),
        "task 1 after task 3": (features, labels, 0, 2, 6),
        "task 1 after task 1": (features, labels, 0, 2, 2),
    }
    mistakes: Mistakes = {
        "Your gallery holds the query's own task only. All classes seen so far belong into it.": (
            partial(variant, own=True)
        ),
        "Your gallery holds classes that have not arrived yet: use labels below `seen`.": (
            lambda f, y, first, end, seen: variant(f, y, first, end, int(y.max()) + 1)
        ),
        "You let all images be queries. Only those of the task, `first <= label < end`, are.": (
            lambda f, y, first, end, seen: variant(f, y, 0, seen, seen)
        ),
        "You did not scale the features to length 1: similarity is the cosine.": (
            partial(variant, scale=False)
        ),
        NOT_SCALED_DISTANCE: partial(variant, scale=False, distance=True),
        "Every query finds itself: it is part of the gallery and must be left out of its own "
        "search.": lambda *a: 1.0,
        "Query i is not the i-th image of the gallery, so `fill_diagonal_` leaves out the wrong "
        "ones. Search with everybody first, and pick the queries' rows afterwards.": (rectangle),
        "Ends are not included: `first <= label < end` and `label < seen`.": (
            lambda f, y, first, end, seen: variant(f, y, first, end + 1, seen + 1)
        ),
    }
    compare(answer, variant, cases, mistakes)


@exercise("4.4", "paired by seed, with the spread of the differences.")
def check_paired_difference(
    paired_difference: Callable[[dict[int, float], dict[int, float]], tuple[float, float, int]],
) -> None:
    """Exercise 4.4: compare two methods seed by seed."""

    def variant(
        a: dict[int, float],
        b: dict[int, float],
        by_place: bool = False,
        ddof: int = 1,
        sign: int = 1,
        ties_win: bool = False,
        standard_error: bool = False,
        share: bool = False,
    ) -> tuple[float, float, float]:
        seeds = sorted(a.keys() & b.keys())
        pairs = [(a[s], b[s]) for s in seeds]
        if by_place:
            pairs = list(zip(a.values(), b.values(), strict=False))
        d = sign * np.array([x - y for x, y in pairs])
        sd = d.std(ddof=ddof) / (np.sqrt(len(d)) if standard_error else 1)
        wins = (d >= 0) if ties_win else (d > 0)
        return float(d.mean()), float(sd), float(wins.mean() if share else wins.sum())

    def unpaired(
        a: dict[int, float], b: dict[int, float], every_seed: bool = False
    ) -> tuple[float, float, float]:
        seeds = sorted(a.keys() & b.keys())
        x, y = (np.array([*(v.values() if every_seed else map(v.get, seeds))]) for v in (a, b))
        sd = np.sqrt(x.var(ddof=1) + y.var(ddof=1))
        return float(x.mean() - y.mean()), float(sd), float(sum(a[s] > b[s] for s in seeds))

    three = {0: 90.0, 1: 94.0, 2: 91.0}
    cases = {
        "three seeds": (three, {0: 88.0, 1: 93.0, 2: 92.0}),
        "the same seeds in another order": (three, {2: 92.0, 0: 88.0, 1: 93.0}),
        "a seed that only one of them has": (
            {0: 5.0, 1: 7.0, 3: 4.0, 4: 9.0},
            {4: 7.0, 0: 6.0, 1: 3.0, 9: 1.0},
        ),
        "a tie": ({0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 2.0}),
        "five seeds": (dict(enumerate([4.0, 6.0, 5.0, 9.0, 3.0])), dict(enumerate([5.0] * 5))),
    }
    mistakes = {
        "You pair the values by their place in the dictionaries. Pair them by *seed*.": (
            lambda a, b: variant(a, b, by_place=True)
        ),
        "Your spread has the divisor n. For a sample use n − 1 (`ddof=1`).": (
            lambda a, b: variant(a, b, ddof=0)
        ),
        "The difference is the wrong way round: first method minus second.": (
            lambda a, b: variant(a, b, sign=-1)
        ),
        "The last number is a share of the seeds. Asked for is how many.": (
            lambda a, b: variant(a, b, share=True)
        ),
        "You count a tie as a win.": lambda a, b: variant(a, b, ties_win=True),
        "This is the standard error, which says how well the mean is known. Asked for is the "
        "standard deviation of the differences.": lambda a, b: variant(a, b, standard_error=True),
        "You compare two means with two spreads. What the seeds share then hides the "
        "difference: take the difference for each seed first.": unpaired,
        "You compare two means with two spreads, over all seeds that each of them has. Take "
        "the difference for each seed that *both* have first.": (
            lambda a, b: unpaired(a, b, every_seed=True)
        ),
    }
    compare(paired_difference, variant, cases, mistakes)


@exercise("4.6", "one effect beside each set of other terms, paired by seed.")
def check_term_effect(term_effect: Callable[[Results, str], dict[str, float]]) -> None:
    """Exercise 4.6: what one term adds to each recipe that can take it."""

    def right(
        results: Results,
        term: str,
        sign: int = 1,
        paired: bool = True,
        name_with: bool = False,
        fits: Callable[[int, int], bool] = lambda added, lost: added == 1 and lost == 0,
        by_text: bool = False,
        every_seed: bool = False,
        reduce: Callable[[list[float]], Any] = np.mean,
    ) -> dict[str, float]:
        found = {}
        for others, with_it in ((a, b) for a in results for b in results):
            a, b = others.split("+"), with_it.split("+")
            if term not in {*b} - {*a} or not fits(len({*b} - {*a}), len({*a} - {*b})):
                continue
            if by_text and [t for t in b if t != term] != a:
                continue
            first, second = results[with_it], results[others]
            seeds = {*first, *second} if every_seed else [s for s in first if s in second]
            values = [sign * (first.get(s, 0.0) - second.get(s, 0.0)) for s in seeds]
            if not paired:
                values = [sign * float(np.mean([*first.values()]) - np.mean([*second.values()]))]
            if values:
                found[with_it if name_with else others] = float(reduce(values))
        return found

    three = {
        "ce": {0: 90.0, 1: 92.0},
        "ce+kd": {1: 91.0, 0: 93.0},
        "ce+kd+csd": {0: 97.0, 1: 96.0},
    }
    cases: dict[str, tuple[Any, ...]] = {
        "`kd` in three recipes": (three, "kd"),
        "`csd` in three recipes": (three, "csd"),
        "a term in the middle: `triplet`": (
            {"ce+csd": {0: 97.0}, "ce+triplet+csd": {0: 95.5}, "ce": {0: 95.0}, "triplet": {0: 9}},
            "triplet",
        ),
        "a seed that only one of them has": (
            {
                "ce": {0: 90.0, 1: 80.0, 3: 70.0, 5: 50.0},
                "ce+csd": {7: 9.0, 1: 83.0, 3: 79.0, 0: 91.0},
            },
            "csd",
        ),
        "two recipes that share no seed": ({"ce": {0: 90.0}, "ce+csd": {1: 93.0}}, "csd"),
        "`csd` beside `csd_paper`": (
            {"ce": {0: 90.0}, "ce+csd_paper": {0: 93.0}, "ce+csd+csd_paper": {0: 94.5}},
            "csd",
        ),
        "terms in another order": ({"triplet+ce": {0: 80.0}, "ce+kd+triplet": {0: 83.0}}, "kd"),
        "one term more, but other terms": (
            {"ce+kd": {0: 90.0}, "ce+triplet": {0: 91.0}, "ce+triplet+csd": {0: 95.0}},
            "csd",
        ),
        "the first term: `ce`": ({"triplet": {0: 70.0}, "ce+triplet": {0: 74.0}}, "ce"),
        "no pair": ({"ce": {0: 90.0}, "ce+kd+csd": {0: 93.0}}, "csd"),
    }
    mistakes: Mistakes = {
        "The difference is the wrong way round: with the term minus without it.": (
            lambda r, t: right(r, t, sign=-1)
        ),
        "The sign is lost: a term can cost points, and then its effect is negative.": [
            partial(right, reduce=reduce)
            for reduce in (lambda d: abs(np.mean(d)), lambda d: np.abs(d).mean())
        ],
        "You put 0 in the place of a negative value. A term can cost points, and then its effect "
        "is negative.": [
            partial(right, reduce=reduce)
            for reduce in (lambda d: max(0.0, np.mean(d)), lambda d: np.maximum(0, d).mean())
        ],
        "You name each effect by the recipe *with* the term. Asked for is the one without.": (
            lambda r, t: right(r, t, name_with=True)
        ),
        "You compare the means of all seeds. Take the difference for each seed that *both* "
        "recipes have.": lambda r, t: right(r, t, paired=False),
        "You also compare recipes that differ in other terms. Whatever else has changed is then "
        "part of your effect.": [
            lambda r, t, fits=fits: right(r, t, fits=fits)
            for fits in (
                lambda added, lost: True,
                lambda added, lost: lost == 0,
                lambda added, lost: added == lost + 1,
            )
        ],
        "You add up over the seeds. Take their mean.": lambda r, t: right(r, t, reduce=sum),
        "This is the median over the seeds. Take their mean.": (
            lambda r, t: right(r, t, reduce=np.median)
        ),
        "You divide by the number of all seeds. Divide by that of the seeds that *both* "
        "recipes have.": lambda r, t: {
            without: total / len(r[without]) for without, total in right(r, t, reduce=sum).items()
        },
        "You take 0 for the value of a seed that a recipe does not have. Leave such seeds out.": (
            lambda r, t: right(r, t, every_seed=True)
        ),
        "You compare the recipes as texts, or as lists. The order of their terms has no "
        "meaning: compare *sets*, `set(recipe.split('+'))`.": (
            lambda r, t: right(r, t, by_text=True)
        ),
        "You look for the recipe with the term at its end. It can stand in the middle or in "
        "front: compare *sets* of terms, `set(recipe.split('+'))`.": lambda r, t: {
            without: effect for without, effect in right(r, t).items() if f"{without}+{t}" in r
        },
        "This is one number. A term can do one thing beside some terms and another beside "
        "others: give one for each recipe.": (
            lambda r, t: np.mean([*right(r, t).values()] or [np.nan])
        ),
    }
    hints = {
        "a term in the middle: `triplet`": "The term need not be the last one: compare *sets* of "
        "terms, `set(recipe.split('+'))`.",
        "a seed that only one of them has": "Take the seeds that *both* recipes have.",
        "two recipes that share no seed": "Leave out a pair that shares no seed.",
        "terms in another order": "The order of the terms has no meaning: compare *sets*, and name "
        "each effect by the recipe as it stands in `results`.",
        "`csd` beside `csd_paper`": "`csd` is the beginning of `csd_paper`, so a string search "
        "finds both: compare *sets* of terms, `set(recipe.split('+'))`.",
        "the first term: `ce`": "The term need not be the last one: compare *sets* of terms, "
        "`set(recipe.split('+'))`.",
    }
    compare(term_effect, right, cases, mistakes, hints=hints)
