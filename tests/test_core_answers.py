"""More wrong answers to the exercises inside the chapters, written as students write them.

None of them calls a checker's own wrong answers. A message counts as specific if it names a mistake
that can be found in the code; "Not right yet" with a case does not.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_checkers import (
    csd_with_loops,
    forgetting_with_loops,
    overlap_in_matrices,
    paired_by_hand,
    recall_by_sorting,
    split_by_repeated_cutting,
    triplet_in_matrices,
    unit,
)

from csd_lib.course.checkers import CHECKERS

# --- 2.2 ------------------------------------------------------------------------------------------


def every_triplet(f, y, m, nonzero=True):
    s, found = unit(f) @ unit(f).T, []
    for a in range(len(y)):
        for p in range(len(y)):
            for n in range(len(y)):
                if a != p and y[a] == y[p] and y[a] != y[n]:
                    found.append((s[a, n] - s[a, p] + m).clamp(min=0))
    found = torch.stack(found)
    return found.sum() / (found > 0).sum().clamp(min=1) if nonzero else found.mean()


def triplet_by_distance(f, y, m):
    """Of the features as they are, not scaled to length 1."""
    found = []
    for a in range(len(y)):
        distance = (f - f[a]).square().sum(dim=1)
        positive = distance[(y == y[a]) & (torch.arange(len(y)) != a)]
        negative = distance[y != y[a]]
        if len(positive) and len(negative):
            found.append((positive.max() - negative.min() + m).clamp(min=0))
    found = torch.stack(found)
    return found.sum() / (found > 0).sum().clamp(min=1)


def both_easiest(f, y, m):
    return triplet_in_matrices(f, y, m, hardest=False, negative="min")


def summed(f, y, m):
    s, same = unit(f) @ unit(f).T, y[:, None] == y
    positive = s.masked_fill(~same | torch.eye(len(y)).bool(), 9).amin(1)
    lonely = positive == 9
    loss = (s.masked_fill(same, -9).amax(1) - positive + m).clamp(min=0)
    return loss[~lonely].sum()


def mean_positive(f, y, m):
    s, found = unit(f) @ unit(f).T, [torch.zeros(())]
    for a in range(len(y)):
        positive = s[a][(y == y[a]) & (torch.arange(len(y)) != a)]
        negative = s[a][y != y[a]]
        if len(positive):
            found.append((negative.mean() - positive.mean() + m).clamp(min=0))
    return sum(found) / max(1, sum(x > 0 for x in found))


def soft_margin(f, y, m):
    s, same = unit(f) @ unit(f).T, y[:, None] == y
    positive = s.masked_fill(~same | torch.eye(len(y)).bool(), 9).amin(1)
    return F.softplus(s.masked_fill(same, -9).amax(1) - positive + m).mean()


# --- 3.2 ------------------------------------------------------------------------------------------


def contrast(s, t, y, temp, who="both", positives="class", scale=(True, True), own_below=True):
    """CSD by a loop over anchors, with one choice or another that others would make."""
    s, t = unit(s) if scale[0] else s, unit(t) if scale[1] else t
    others = {"both": torch.cat([s, t]), "students": s, "teachers": t}[who]
    labels = torch.cat([y, y]) if who == "both" else y
    own_place = {"both": len(y), "teachers": 0, "students": None}[who]
    terms = []
    for i in range(len(y)):
        e = others @ s[i] / temp
        below = torch.ones(len(labels)).bool()
        if who != "teachers":
            below[i] = False
        positive = (labels == y[i]) & below
        is_teacher = torch.arange(len(labels)) >= (len(y) if who == "both" else 0)
        if positives == "own":
            positive = torch.arange(len(labels)) == i + own_place
        if positives == "teachers":
            positive &= is_teacher
        if positives == "students and own":
            positive &= ~is_teacher | (torch.arange(len(labels)) == i + own_place)
        if not own_below:
            below[i + own_place] = False
        log_p = e - e[below].logsumexp(0)
        terms.append(-log_p[positive].mean())
    return torch.stack(terms).mean()


def two_views(s, t, y, temp):
    f, y = unit(torch.cat([s, t])), torch.cat([y, y])
    e = (f @ f.T / temp).fill_diagonal_(-torch.inf)
    log_p = e - e.logsumexp(1, keepdim=True)
    return torch.stack(
        [-log_p[i][(y == y[i]) & (torch.arange(len(y)) != i)].mean() for i in range(len(y))]
    ).mean()


# --- 4.1 ------------------------------------------------------------------------------------------


def drop_the_first(f, y, k):
    s = unit(f) @ unit(f).T
    found = s.topk(min(k + 1, len(y)), dim=1).indices[:, 1:]
    hits = (y[found] == y[:, None]).any(dim=1)
    counted = torch.tensor([(y == c).sum() > 1 for c in y])
    return hits[counted].float().mean().item()


def first_k(f, y, k, descending=True, manhattan=False, singles=True, keep=None):
    f = unit(f)
    s = -torch.cdist(f, f, p=1) if manhattan else f @ f.T
    s = s.fill_diagonal_(-torch.inf if descending else torch.inf)
    order = s.argsort(dim=1, descending=descending, stable=True)[:, :k]
    hits = y[order] == y[:, None]
    hits = hits.all(dim=1) if keep == "all" else hits[:, -1] if keep == "last" else hits.any(dim=1)
    counted = torch.tensor([bool((y == c).sum() > 1) or singles for c in y])
    return hits[counted].float().mean().item()


def by_class(f, y, k):
    per = [
        recall_by_sorting(
            f[torch.cat([(y == c).nonzero()[:, 0], (y != c).nonzero()[:, 0]])],
            torch.cat([y[y == c], y[y != c]]),
            k,
        )
        for c in y.unique()
    ]
    return sum(per) / len(per) / 2


def without_lone_images(f, y, k):
    kept = torch.tensor([(y == label).sum() > 1 for label in y])
    return recall_by_sorting(f[kept], y[kept], k)


# --- 4.2 ------------------------------------------------------------------------------------------


def columns(m, rows=slice(None, -1), tasks=None, reduce=np.mean, best=np.max, sign=1, scale=1):
    lost = [best(m[:, j][rows]) - m[-1, j] for j in range(tasks if tasks else len(m) - 1)]
    return sign * scale * reduce(lost)


# --- 5.2 ------------------------------------------------------------------------------------------


def overlap_of_sets(old, new, k, farthest=False, once=False, lost=False, count=False, mix=False):
    kept = []
    s = [unit(f) @ unit(f).T for f in (old, new)]
    if mix:
        s[1] = unit(old) @ unit(new).T
    for i in range(len(old)):
        found = []
        for similarity in s:
            row = similarity[i].clone()
            row[i] = 9 if farthest else -9
            found.append(set(row.argsort(descending=not farthest)[:k].tolist()))
        kept.append(len(found[0] & found[1]))
    share = sum(kept) / (k * len(kept))
    if once:
        return sum(x > 0 for x in kept) / len(kept)
    if count:
        return sum(kept) / len(kept)
    return 1 - share if lost else share


MORE = {
    "1.2": [
        (
            lambda o, t: dict(enumerate(split_by_repeated_cutting(o, t))),
            "returns a dictionary",
        ),
    ],
    "2.2": [
        (both_easiest, "easiest pair"),
        (every_triplet, "all\\* triplets"),
        (lambda f, y, m: every_triplet(f, y, m, nonzero=False), "all\\* triplets"),
        (summed, "add up over the anchors"),
        (triplet_by_distance, "Not right yet"),
        (lambda f, y, m: triplet_in_matrices(f, y, -m), "margin is subtracted"),
        (mean_positive, "Not right yet"),
        (soft_margin, "Not right yet"),
        (lambda f, y, m: triplet_in_matrices(f, y, m).item(), "float, but a tensor"),
        (lambda f, y, m: triplet_in_matrices(f.detach(), y, m), "cut off from the graph"),
    ],
    "3.2": [
        (lambda *a: contrast(*a, positives="own"), "InfoNCE"),
        (lambda *a: contrast(*a, positives="teachers"), "positives are teachers only"),
        (lambda *a: contrast(*a, positives="students and own"), "of the teachers only"),
        (lambda *a: contrast(*a, who="teachers"), "compare with the teachers only"),
        (lambda *a: contrast(*a, who="students"), "students only"),
        (lambda *a: contrast(*a, own_below=False), "leaves the anchor's own teacher out"),
        (two_views, "SupCon with two views"),
        (lambda *a: contrast(*a) * a[3], "multiply the loss by the temperature"),
        (lambda *a: contrast(*a) * a[3] / 0.07, "T / 0.07"),
        (lambda *a: contrast(*a, scale=(True, False)), "not the teacher's"),
        (lambda *a: contrast(*a, scale=(False, True)), "not the student's"),
        (lambda *a: -contrast(*a), "minus sign"),
        (lambda s, t, y, temp: csd_with_loops(s, t, y, 1 / temp), "multiply by the temperature"),
    ],
    "4.1": [
        (drop_the_first, "leave out the first of the K"),
        (lambda *a: first_k(*a, singles=False), "pick as they like"),
        (lambda *a: first_k(*a, descending=False), "Not right yet"),
        (lambda *a: first_k(*a, keep="all"), "Not right yet"),
        (lambda *a: first_k(*a, keep="last"), "Not right yet"),
        (lambda *a: first_k(*a, manhattan=True), "Not right yet"),
        (lambda *a: 1 - recall_by_sorting(*a), "Not right yet"),
        (lambda *a: 100 * recall_by_sorting(*a), "percent"),
        (lambda f, y, k: recall_by_sorting(f, y, 1), "Not right yet"),
        (by_class, "Not right yet"),
        (without_lone_images, "stays in the gallery"),
    ],
    "4.2": [
        (
            lambda m: columns(m, slice(None)),
            "before the task was learned.* second thing|last row.* second",
        ),
        (lambda m: columns(m, sign=-1), "second thing"),
        (lambda m: columns(m, reduce=np.sum), "second thing"),
        (lambda m: columns(m, scale=100), "second thing"),
        (lambda m: columns(m, tasks=len(m)), "second thing"),
        (lambda m: forgetting_with_loops(m, last=0, sign=-1), "second thing"),
        (lambda m: forgetting_with_loops(m, last=0, percent=100), "second thing"),
        (lambda m: columns(m.T), "second thing"),
        (lambda m: max(0, forgetting_with_loops(m)), "0 in the place of a negative value"),
        (lambda m: abs(forgetting_with_loops(m)), "sign is lost"),
        (
            lambda m: np.mean([abs(m[j:-1, j].max() - m[-1, j]) for j in range(len(m) - 1)]),
            "sign of each task",
        ),
        (lambda m: columns(m, best=np.mean), "Not right yet"),
        (lambda m: columns(m, best=np.median), "Not right yet"),
        (lambda m: m[0, 0] - m[-1, 0], "Not right yet"),
        (lambda m: m.max() - m[-1].mean(), "Not right yet"),
        (lambda m: [m[j:-1, j].max() - m[-1, j] for j in range(len(m) - 1)], "list, but a number"),
    ],
    "5.2": [
        (lambda *a: overlap_of_sets(*a, farthest=True), "Not right yet"),
        (lambda *a: overlap_of_sets(*a, once=True), "Not right yet"),
        (lambda *a: overlap_of_sets(*a, lost=True), "lost"),
        (lambda *a: overlap_of_sets(*a, count=True), "do not divide by k"),
        (lambda *a: overlap_of_sets(*a, mix=True), "Not right yet"),
        (lambda f, g, k: overlap_in_matrices(f, g, k + 1), "Not right yet"),
        (lambda f, g, k: overlap_in_matrices(f, g, 1), "Not right yet"),
        (lambda f, g, k: F.cosine_similarity(f, g).mean().item(), "Not right yet"),
    ],
    "4.4": [
        (lambda a, b: paired_by_hand(a, b)[:2], "returns"),
        (
            lambda a, b: (*paired_by_hand(a, b)[:2], sum(a[s] >= b[s] for s in set(a) & set(b))),
            "tie",
        ),
        (lambda a, b: (np.mean([*a.values()]) - np.mean([*b.values()]), 0.0, 0), "Not right yet"),
        (
            lambda a, b: (
                paired_by_hand(a, b)[0],
                paired_by_hand(a, b)[1] / math.sqrt(len(set(a) & set(b))),
                paired_by_hand(a, b)[2],
            ),
            "standard error",
        ),
        (
            lambda a, b: (
                paired_by_hand(a, b)[0],
                paired_by_hand(a, b)[1] ** 2,
                paired_by_hand(a, b)[2],
            ),
            "Not right yet",
        ),
        (lambda a, b: (*paired_by_hand(a, b)[:2], len(set(a) & set(b))), "Not right yet"),
        (lambda a, b: paired_by_hand(a, b)[0], "returns"),
    ],
}
# --- 4.6 ------------------------------------------------------------------------------------------


def differences(results, term):
    """{(recipe without, recipe with the term): differences of the seeds that both have}"""
    found = {}
    for a, without in results.items():
        for b, with_it in results.items():
            if a != b and {*a.split("+")} | {term} == {*b.split("+")}:
                found[a, b] = [with_it[s] - without[s] for s in without if s in with_it]
    return {pair: values for pair, values in found.items() if values}


def named(how, place=0):
    """An answer that makes one value of the differences of each pair."""
    return lambda r, t: {pair[place]: how(d) for pair, d in differences(r, t).items()}


def effect_by_cutting(results, term):
    """Cut the term's text out of the recipe's."""
    pairs = ((name.replace("+" + term, ""), name) for name in results)
    return {
        a: np.mean([results[b][s] - results[a][s] for s in results[b] if s in results[a]])
        for a, b in pairs
        if a != b and a in results and {*results[a]} & {*results[b]}
    }


def mean_effects(results, term):
    return [(a, np.mean(d)) for (a, _), d in differences(results, term).items()]


def effect_of_one_term_more(results, term):
    """Recipes with one term more, whatever the others are."""
    sets = {name: {*name.split("+")} for name in results}
    found = {}
    for a, without in sets.items():
        for b, with_it in sets.items():
            shared = [s for s in results[a] if s in results[b]]
            if len(with_it) == len(without) + 1 and term in with_it - without and shared:
                found[a] = np.mean([results[b][s] - results[a][s] for s in shared])
    return found


def effect_of_more_terms(results, term):
    """Recipes that have all the other's terms, this one, and perhaps more."""
    sets = {name: {*name.split("+")} for name in results}
    found = {}
    for a, without in sets.items():
        for b, with_it in sets.items():
            shared = [s for s in results[a] if s in results[b]]
            if without < with_it and term in with_it - without and shared:
                found[a] = np.mean([results[b][s] - results[a][s] for s in shared])
    return found


def effect_over_all_seeds(results, term):
    return {a: sum(d) / len(results[a]) for (a, _), d in differences(results, term).items()}


def effect_with_zeros(results, term):
    found = {}
    for a in results:
        for b in results:
            if a != b and {*a.split("+")} | {term} == {*b.split("+")}:
                seeds = {*results[a], *results[b]}
                found[a] = np.mean([results[b].get(s, 0) - results[a].get(s, 0) for s in seeds])
    return found


def effect_of_pairs_without_a_seed(results, term):
    pairs = ((a, b) for a in results for b in results if a != b)
    fit = [(a, b) for a, b in pairs if {*a.split("+")} | {term} == {*b.split("+")}]
    found = dict.fromkeys((a for a, _ in fit), float("nan"))
    return found | dict(mean_effects(results, term))


def effect_by_list(results, term):
    """Take the term out of the list of terms."""
    names = {name: "+".join(t for t in name.split("+") if t != term) for name in results}
    effects = dict(mean_effects(results, term))
    return {a: effects[a] for b, a in names.items() if a != b and a in effects}


def effect_that_takes_recipes_out(results, term):
    effects = dict(mean_effects(results, term))
    for name in [*results]:
        if term in name.split("+"):
            results.pop(name)
    return effects


def effect_at_the_end(results, term):
    return {a: np.mean(d) for (a, b), d in differences(results, term).items() if b.endswith(term)}


def by_place(results, term):
    return {
        a: np.mean([x - y for x, y in zip(results[b].values(), results[a].values(), strict=False)])
        for a, b in differences(results, term)
    }


MORE["4.6"] = [
    (effect_by_cutting, r"\*sets\*"),
    (effect_at_the_end, "at its end"),
    (by_place, "Not right yet"),
    (named(np.mean, 1), "\\*with\\* the term"),
    (named(lambda d: -np.mean(d)), "wrong way round"),
    (named(sum), "add up over the seeds"),
    (named(lambda d: 100 * np.mean(d)), "Not right yet"),
    (named(lambda d: abs(np.mean(d))), "sign is lost"),
    (named(max), "Not right yet"),
    (named(lambda d: d[0]), "Not right yet"),
    (named(list), "Not right yet"),
    (lambda r, t: [np.mean(d) for d in differences(r, t).values()], "Not right yet"),
    (named(np.median), "median"),
    (effect_of_one_term_more, "other terms"),
    (effect_of_more_terms, "other terms"),
    (effect_over_all_seeds, "number of all seeds"),
    (effect_with_zeros, "take 0 for"),
    (effect_of_pairs_without_a_seed, "empty dictionary. Leave out a pair that shares no seed"),
    (effect_by_list, "as texts, or as lists"),
    (lambda r, t: {"+".join(sorted(a.split("+"))): v for a, v in mean_effects(r, t)}, "stands in"),
    (effect_that_takes_recipes_out, "changes the dictionary"),
    (named(lambda d: np.mean(np.abs(d))), "sign is lost"),
    (named(lambda d: max(0, np.mean(d))), "0 in the place of a negative value"),
    (named(lambda d: np.mean(np.maximum(0, d))), "0 in the place of a negative value"),
]
ANSWERS = [(number, wrong, words) for number, group in MORE.items() for wrong, words in group]
# Counted within each exercise. tests/mutants.toml names some: add wrong answers at a group's end.
IDS = [f"{number}-{i}" for number, group in MORE.items() for i in range(len(group))]


@pytest.mark.parametrize("number, wrong, words", ANSWERS, ids=IDS)
def test_names_what_is_wrong_in_a_core_exercise(number, wrong, words):
    verdict = CHECKERS[number](wrong)
    assert not verdict
    assert re.search(words, verdict.message, re.DOTALL), verdict.message


@pytest.mark.parametrize(
    "number, wrong, words",
    [
        (
            "1.4",
            lambda x, p, g: torch.stack(
                [
                    F.pad(image, (0, 0, p, p))[:, r : r + x.shape[2]]
                    for image, r in zip(
                        x, torch.randint(2 * p + 1, (len(x),), generator=g).tolist(), strict=True
                    )
                ]
            ),
            "one direction only",
        ),
        (
            "4.3",
            lambda f, y, a, b, n: (y[(unit(f[y < n]) @ unit(f[y < n]).T).argmax(1)] == y)[(y < n)][
                y < b
            ],
            "different numbers of rows",
        ),
        (
            "3.5",
            lambda s, t, y: (1 - F.cosine_similarity(F.dropout(s, 0.5), t.detach())).mean(),
            "something in it is random",
        ),
    ],
)
def test_messages_that_misled_now_name_the_cause(number, wrong, words):
    verdict = CHECKERS[number](wrong)
    assert not verdict and re.search(words, verdict.message), verdict.message


def test_numbers_in_a_message_are_short():
    message = CHECKERS["4.4"](lambda a, b: (*paired_by_hand(a, b)[:2], 99)).message
    assert "Not right yet" in message and not re.search(r"\d\.\d{6}", message)
