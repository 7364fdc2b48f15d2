"""Every checker rejects the stub and typical wrong answers, and accepts two right ones.

The wrong answers are written here as a student would write them, not taken from the checkers.
"""

import copy
import math
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import warm

from csd_lib import course, data, losses, methods
from csd_lib.config import TrainConfig
from csd_lib.course.checkers import CHECKERS, VERDICTS

ROOT = Path(__file__).resolve().parent.parent
SOLVED = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
STUDENT = sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb"))


def answer(paths, exercise):
    """The function that a cell of an exercise's notebook defines, with the notebook's imports."""
    (path,) = [p for p in paths if p.name.startswith(f"0{exercise[0]}")]
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [c for c in cells if c.id == f"solution-{exercise.replace('.', '-')}"]
    imports = [line for c in cells for line in c.source.splitlines() if line.startswith("import ")]
    scope = {"losses": losses}
    exec("\n".join(imports) + "\n" + cell.source, scope)
    return scope[re.search(r"def (\w+)", cell.source)[1]]


def unit(x):
    return F.normalize(x, dim=1)


# Exercise 1 --------------------------------------------------------------------------------------


def relabel_with_a_loop(labels, order):
    places = {c: i for i, c in enumerate(order)}
    return torch.tensor([places[int(c)] for c in labels])


def replace_in_place(labels, order):
    new = labels.clone()
    for place, c in enumerate(order):
        new[new == c] = place
    return new


def split_by_repeated_cutting(order, tasks):
    groups, order = [], list(order)
    while tasks:
        size = math.ceil(len(order) / tasks)
        groups.append(order[:size])
        order, tasks = order[size:], tasks - 1
    return groups


def split_with_larger_last_tasks(order, tasks):
    sizes = [len(order) // tasks + (i >= tasks - len(order) % tasks) for i in range(tasks)]
    return [tuple(order[sum(sizes[:i]) : sum(sizes[: i + 1])]) for i in range(tasks)]


def split_and_lose_the_rest(order, tasks):
    n = len(order) // tasks
    return [order[i * n : (i + 1) * n] for i in range(tasks)]


def split_with_a_large_last_task(order, tasks):
    n = len(order) // tasks
    groups = [order[i * n : (i + 1) * n] for i in range(tasks)]
    groups[-1] = order[(tasks - 1) * n :]
    return groups


def split_into_large_chunks(order, tasks):
    n = math.ceil(len(order) / tasks)
    return [order[i : i + n] for i in range(0, len(order), n)]


def copies_by_comparing_all(train, test):
    return int((test[:, None] == train[None]).flatten(2).all(dim=2).any(dim=1).sum())


def copies_that_are_nearly_equal(train, test):
    return sum(any((a.float() - b.float()).abs().mean() < 5 for a in train) for b in test)


def copies_by_corner_and_sum(train, test):
    known = {(int(a.flatten()[0]), int(a.sum())) for a in train}
    return sum((int(b.flatten()[0]), int(b.sum())) in known for b in test)


def copies_in_grey(train, test):
    return copies_by_comparing_all(*(x.float().mean(1, keepdim=True) for x in (train, test)))


def copies_by_histogram(train, test):
    known = [torch.bincount(a.flatten(), minlength=256) for a in train]
    return sum(
        any(torch.equal(torch.bincount(b.flatten(), minlength=256), a) for a in known) for b in test
    )


def copies_by(key):
    """An answer that compares ``key(image)`` instead of the images."""

    def answer(train, test):
        known = {key(image) for image in train}
        return sum(key(image) in known for image in test)

    return answer


def copies_if(alike):
    """An answer that compares two images at a time."""
    return lambda train, test: sum(any(alike(a, b) for a in train) for b in test)


def copies_by_mean(train, test):
    means = train.float().mean(dim=(1, 2, 3)).tolist()
    return sum(image.float().mean().item() in means for image in test)


def crop(images, padding, generator, upper=None, same=False, mode="constant", both=False):
    batch, _, height, width = images.shape
    padded = F.pad(images.float(), (padding,) * 4, mode=mode).to(images.dtype)
    upper = upper or 2 * padding + 1
    out = []
    i, j = (torch.randint(upper, (batch,), generator=generator) for _ in "ij")
    for b in range(batch):
        y, x = (i[0], j[0]) if same else (i[b], i[b]) if both else (i[b], j[b])
        out.append(padded[b, :, y : y + height, x : x + width])
    return torch.stack(out)


def crop_by_rounding(images, padding, generator):
    """`round` gives the first and the last place half of what the others get."""
    i, j = ((torch.rand(len(images), generator=generator) * 2 * padding).round() for _ in "ij")
    return cut(images, padding, i.long(), j.long())


def cut(images, padding, rows, columns):
    _, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    windows = zip(padded, rows, columns, strict=True)
    return torch.stack([x[:, r : r + height, c : c + width] for x, r, c in windows])


def crop_channel_by_channel(images, padding, generator):
    return crop(images.reshape(-1, 1, 8, 6), padding, generator).reshape(images.shape)


def crop_with(choose):
    """An answer that shifts image b of all by ``choose(b, row, column)`` of the draws."""

    def answer(images, padding, generator):
        size, (_, _, height, width) = 2 * padding + 1, images.shape
        padded = F.pad(images, (padding,) * 4)
        rows, columns = (torch.randint(size, (len(images),), generator=generator) for _ in "ij")
        out = []
        for b in range(len(images)):
            r, c = choose(b, rows, columns)
            out.append(padded[b, :, r : r + height, c : c + width])
        return torch.stack(out)

    return answer


# Exercise 2 --------------------------------------------------------------------------------------


def entropy_with_the_maximum_subtracted(z, y):
    z = z - z.max(dim=1, keepdim=True).values
    total = 0
    for row, label in zip(z, y, strict=True):
        total = total + row.exp().sum().log() - row[label]
    return total / len(y)


def entropy_minus_the_largest_of_all(z, y):
    z = z - z.max()
    return -(z[range(len(y)), y] - z.exp().sum(dim=1).log()).mean()


def half_detached(loss):
    """The right value, with half of its gradient."""

    def answer(*args):
        value = loss(*args)
        return (value + value.detach()) / 2

    return answer


def log_softmax(z):
    return z - z.logsumexp(1, keepdim=True)


def entropy_with_a_helper(z, y):
    return -log_softmax(z)[range(len(y)), y].mean()


def entropy_that_hides_errors(z, y):
    try:
        return F.cross_entropy(z, y)
    except Exception:
        return (z.logsumexp(1) - z[range(len(y)), y]).mean()


def entropy_by_the_book(z, y):
    p = z.exp() / z.exp().sum(dim=1, keepdim=True)
    return -torch.log(p[range(len(y)), y]).mean()


def batch_mean_of_triplets(f, y, m):
    s, same, eye = unit(f) @ unit(f).T, y[:, None] == y, torch.eye(len(y)).bool()
    positive = s.masked_fill(~same | eye, torch.inf).amin(1)
    return (s.masked_fill(same, -torch.inf).amax(1) - positive + m).clamp(min=0).sum() / len(y)


def triplet_of_distances(f, y, m, power):
    s, same, eye = unit(f) @ unit(f).T, y[:, None] == y, torch.eye(len(y)).bool()
    d = (2 - 2 * s).clamp(min=0) ** (power / 2)
    far = d.masked_fill(~same | eye, -torch.inf).amax(1)
    near = d.masked_fill(same, torch.inf).amin(1)
    loss = (far - near + m).clamp(min=0)
    return loss.sum() / (loss > 0).sum().clamp(min=1)


def triplet_in_matrices(
    f, y, m, hardest=True, negative="max", mean=False, scale=True, flip=1, nothing=1, alone=False
):
    f = unit(f) if scale else f
    s = f @ f.T
    same = y[:, None] == y
    eye = torch.eye(len(y)).bool()
    positive = s.masked_fill(~same | eye, 9).amin(1)
    if not hardest:
        positive = s.masked_fill(~same | eye, -9).amax(1)
    rival = s.masked_fill(same, -9).amax(1) if negative == "max" else s.masked_fill(same, 9).amin(1)
    if alone:
        positive, rows = s.masked_fill(~same, 9).amin(1), torch.ones(len(y)).bool()
    else:
        rows = (same & ~eye).any(1) & (~same).any(1)
    loss = (flip * (rival - positive) + m)[rows].clamp(min=0)
    return loss.mean() if mean else loss.sum() / (loss > 0).sum().clamp(min=nothing)


# Exercise 3 --------------------------------------------------------------------------------------


def kd_by_torch(s, t, temperature, power=0, reduction="batchmean", chances=False):
    s = s[:, : t.shape[1]]
    log_p = F.log_softmax(s / temperature, 1)
    log_p = log_p.exp() if chances else log_p
    value = F.kl_div(log_p, F.softmax(t / temperature, 1), reduction=reduction)
    return value * temperature**power


def kd_after_softmax_over_all(s, t, temperature):
    p = (s / temperature).softmax(1)[:, : t.shape[1]]
    q = (t / temperature).softmax(1)
    return (q * (q / p).log()).sum(1).mean()


def kd_reversed(s, t, temperature):
    p = (s[:, : t.shape[1]] / temperature).softmax(1)
    q = (t / temperature).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


def csd_with_itself(s, t, y, temperature, above):
    """The anchor is one of its own positives: in the sum, or only in their number."""
    s, t = unit(s), unit(t)
    similarity = s @ torch.cat([s, t]).T / temperature
    itself = torch.eye(len(y), 2 * len(y)).bool()
    log_p = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    positive = y[:, None] == torch.cat([y, y])
    chosen = positive if above else positive & ~itself
    return -((log_p * chosen).sum(1) / positive.sum(1)).mean()


def csd_with_loops(
    s, t, y, temperature=0.07, itself=False, own=True, scale=True, total=False, outside=False
):
    s, t = (unit(s), unit(t)) if scale else (s, t)
    everything, labels = torch.cat([s, t]), torch.cat([y, y])
    batch, terms = len(y), []
    for i in range(batch):
        allowed = [j for j in range(2 * batch) if itself or j != i]
        below = torch.logsumexp(
            torch.stack([s[i] @ everything[j] for j in allowed]) / temperature, 0
        )
        positives = [
            j for j in range(2 * batch) if j != i and labels[j] == y[i] and (own or j != i + batch)
        ]
        logs = [s[i] @ everything[j] / temperature - below for j in positives]
        if not logs:
            terms.append(torch.zeros(()))
        elif outside:
            terms.append(-torch.stack(logs).exp().mean().log())
        else:
            terms.append(-sum(logs) / (1 if total else len(logs)))
    return torch.stack(terms).mean()


def triplet_with_masks(f, y, m, zeros="both", alone=False, mean=False):
    """The masks are multiplied; `zeros` says which of them."""
    s, same = unit(f) @ unit(f).T, (y[:, None] == y).float()
    others = same - torch.eye(len(y))
    positive, rival = (s * others).amin(1), (s * (1 - same)).amax(1)
    if zeros == "negatives":
        positive = (s + 9 * (1 - others)).amin(1)
    if zeros == "positives":
        rival = (s - 9 * same).amax(1)
    loss = (rival - positive + m).clamp(min=0)
    loss = loss if alone else loss[others.sum(1) > 0]
    return loss.mean() if mean else loss.sum() / max(1, (loss > 0).sum())


def csd_with_a_mask(s, t, y, temperature, softmax=False):
    """The anchor's own place is multiplied by 0."""
    itself = torch.eye(len(y), 2 * len(y))
    e = unit(s) @ unit(torch.cat([s, t])).T / temperature
    positive = (y[:, None] == torch.cat([y, y])).float() - itself
    left = e * (1 - itself)
    log_p = left.log_softmax(1) if softmax else e - left.exp().sum(1, keepdim=True).log()
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def csd_over_negatives(s, t, y, temperature):
    s, t = unit(s), unit(t)
    e = s @ torch.cat([s, t]).T / temperature
    same = y[:, None] == torch.cat([y, y])
    positive = same & ~torch.eye(len(y), 2 * len(y)).bool()
    log = e - e.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def csd_without_own_teacher_and_clamp(s, t, y, temperature):
    s, t = unit(s), unit(t)
    e = s @ torch.cat([s, t]).T / temperature
    eye = torch.eye(len(y)).bool()
    positive = (y[:, None] == torch.cat([y, y])) & ~torch.cat([eye, eye], 1)
    log = e - e.masked_fill(torch.cat([eye, ~eye & eye], 1), -torch.inf).logsumexp(1, keepdim=True)
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def csd_with_exp(s, t, y, temperature):
    s, t = unit(s), unit(t)
    e = (s @ torch.cat([s, t]).T / temperature).exp()
    mask = 1 - torch.eye(len(y), 2 * len(y))
    positive = (y[:, None] == torch.cat([y, y])).float() * mask
    log = torch.log(e / (e * mask).sum(1, keepdim=True))
    return -((log * positive).sum(1) / positive.sum(1)).mean()


def a_test_on(student, teacher, labels, temperature=0.07, exact=False):
    def is_csd(loss):
        value = loss(student, teacher, labels, temperature)
        right = losses.csd_loss(student, teacher, labels, temperature)
        return bool(value == right) if exact else bool(torch.allclose(value, right, rtol=1e-3))

    return is_csd


GENERATOR = torch.Generator().manual_seed(1)
S, T = 3 * torch.randn(2, 10, 4, generator=GENERATOR)
PAIRS, ALONE = torch.arange(10) // 2, torch.arange(10)


def a_test_with_assert(loss):
    value, right = loss(S, T, PAIRS, 0.3), losses.csd_loss(S, T, PAIRS, 0.3)
    assert abs(value - right) < 1e-3
    return True


def frozen(model, copied=True, evaluated=True, stopped=True):
    teacher = copy.deepcopy(model) if copied else model
    if evaluated:
        teacher.eval()
    if stopped:
        for weights in teacher.parameters():
            weights.requires_grad = False
    return teacher


def frozen_with_the_students_batch_norm(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    return frozen(model)


def frozen_with_the_same_buffers(model):
    teacher = frozen(model)
    teacher[1].running_mean = model[1].running_mean
    return teacher


def rebuilt(model):
    return (
        copy.deepcopy(model)
        .apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        .eval()
        .requires_grad_(False)
    )


# Exercise 4 --------------------------------------------------------------------------------------


def recall_by_sorting(
    f, y, k, itself=False, off=0, share=False, scale=True, lonely=False, strict=True
):
    f = unit(f.double()) if scale else f.double()
    hits = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if itself or j != i]
        right = [round((f[i] @ f[j]).item(), 9) for j in others if y[j] == y[i]]
        wrong = [round((f[i] @ f[j]).item(), 9) for j in others if y[j] != y[i]]
        if not right:
            if lonely:
                hits.append(0.0)
            continue
        if share:
            ranked = sorted(others, key=lambda j: -(f[i] @ f[j]).item())[:k]
            hits.append(sum(int(y[j] == y[i]) for j in ranked) / k)
            continue
        before = sum(w > max(right) if strict else w >= max(right) for w in wrong)
        hits.append(float(before < k + off))
    return sum(hits) / len(hits)


def recall_by_topk(f, y, k, leave_out=-torch.inf):
    similarity = unit(f) @ unit(f).T
    if leave_out is not None:
        similarity.fill_diagonal_(leave_out)
    found = y[similarity.topk(k, dim=1).indices]
    counted = torch.stack([(y == label).sum() > (leave_out is not None) for label in y])
    return (found == y[:, None]).any(dim=1)[counted].double().mean().item()


def recall_with_zeros(f, y, k, where):
    """Leaves out by writing 0, which is more than a negative cosine."""
    similarity = ((unit(f.double()) @ unit(f.double()).T) * 2**24).round()
    same = y[:, None] == y
    others = same & ~torch.eye(len(y)).bool()
    if where == "best":
        similarity.fill_diagonal_(-torch.inf)
        best = similarity.masked_fill(~others, 0).amax(1, keepdim=True)
        sooner = (similarity > best) & ~same
    elif where == "own cell":
        similarity.fill_diagonal_(0)
        best = similarity.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        sooner = (similarity > best) & ~same
    else:
        similarity.fill_diagonal_(0)
        best = similarity.masked_fill(~others, -torch.inf).amax(1, keepdim=True)
        sooner = similarity > best
    return (sooner.sum(1) < k)[others.any(1)].double().mean().item()


def forgetting_with_loops(matrix, first=None, last=-1, sign=1, percent=1):
    values = []
    for j in range(len(matrix) - 1):
        column = matrix[:, j]
        top = len(matrix) + last
        best = max(column[j if first is None else first : top + 1 - 1] if last else column[j:])
        values.append(sign * percent * (best - column[-1]))
    return np.mean(values)


def forgetting_without_gains(matrix):
    last = len(matrix) - 1
    return np.mean([max(0, matrix[j:last, j].max() - matrix[last, j]) for j in range(last)])


def forgetting_from_the_diagonal(matrix):
    return np.mean([matrix[j, j] - matrix[-1, j] for j in range(len(matrix) - 1)])


def recall_by_raw_distance(f, y, k):
    hits = []
    for i in range(len(y)):
        apart = (f - f[i]).norm(dim=1)
        others = [j for j in range(len(y)) if j != i]
        right = [float(apart[j]) for j in others if y[j] == y[i]]
        if right:
            wrong = [float(apart[j]) for j in others if y[j] != y[i]]
            hits.append(sum(d < min(right) - 1e-6 for d in wrong) < k)
    return np.mean(hits)


def overlap_of_raw_distances(a, b, k):
    kept = []
    for i in range(len(a)):
        near = [
            set((x - x[i]).norm(dim=1).index_fill(0, torch.tensor(i), 1e9).argsort()[:k].tolist())
            for x in (a, b)
        ]
        kept.append(len(near[0] & near[1]) / k)
    return np.mean(kept)


def copies_by_squares(train, test):
    return sum(any(((x - y) ** 2).sum() == 0 for x in train) for y in test)


def csd_over_all_pairs(s, t, y, temperature, own_teacher=True):
    both = unit(torch.cat([s, t]))
    values, means = [], []
    for i in range(len(s)):
        row = both @ both[i] / temperature
        below = [j for j in range(len(both)) if j != i and (own_teacher or j != i + len(s))]
        found = [row[below].logsumexp(0) - row[j] for j in below if y[j % len(s)] == y[i]]
        values += found
        means.append(sum(found) / max(1, len(found)))
    return (
        torch.stack(values).mean()
        if own_teacher
        else torch.stack([*map(torch.as_tensor, means)]).mean()
    )


def gallery_with_loops(
    f, y, first, end, seen, gallery=None, queries=None, itself=False, scale=True, distance=False
):
    f, hits = unit(f) if scale else f, []
    gallery = gallery or (lambda label: label < seen)
    queries = queries or (lambda label: first <= label < end)
    inside = [j for j in range(len(y)) if gallery(y[j])]
    similarity = -torch.cdist(f, f[inside]) if distance else f @ f[inside].T
    for i in range(len(y)):
        if queries(y[i]):
            row = similarity[i].clone()
            if not itself:
                row[[n for n, j in enumerate(inside) if j == i]] = -99
            hits.append(float(y[inside[int(row.argmax())]] == y[i]))
    return np.mean(hits)


def paired_by_hand(a, b, ddof=1):
    d = [a[s] - b[s] for s in sorted(set(a) & set(b))]
    mean = sum(d) / len(d)
    sd = math.sqrt(sum((x - mean) ** 2 for x in d) / (len(d) - ddof))
    return mean, sd, sum(x > 0 for x in d)


def win_share(a, b):
    seeds = set(a) & set(b)
    return sum(a[s] > b[s] for s in seeds) / len(seeds)


def spread_of_all_seeds(a, b):
    x, y = np.array([*a.values()]), np.array([*b.values()])
    wins = sum(a[s] > b[s] for s in set(a) & set(b))
    return x.mean() - y.mean(), math.sqrt(x.var(ddof=1) + y.var(ddof=1)), wins


def effect_by_sets(results, term, seeds=True, one_more=True):
    found = {}
    for name, values in results.items():
        for other, base in results.items():
            have, had = set(name.split("+")), set(other.split("+"))
            fits = have == had | {term} if one_more else True
            if fits and term in have and term not in had:
                shared = set(values) & set(base)
                difference = np.mean([values[s] - base[s] for s in shared]) if shared else None
                if not seeds:
                    difference = np.mean([*values.values()]) - np.mean([*base.values()])
                if difference is not None:
                    found[other] = difference
    return found


def paired_by_place(a, b):
    d = np.array([x - y for x, y in zip(a.values(), b.values(), strict=False)])
    return d.mean(), d.std(ddof=1), (d > 0).sum()


# Exercise 5 --------------------------------------------------------------------------------------


def overlap_in_matrices(
    old, new, k, itself=False, scale=True, ranks=False, union=False, left_out=-99.0
):
    found = []
    for f in (old, new):
        s = unit(f) @ unit(f).T if scale else f @ f.T
        if not itself:
            s.fill_diagonal_(left_out)
        found.append(s.argsort(dim=1, descending=True)[:, :k])
    if ranks:
        return (found[0] == found[1]).float().mean().item()
    one = [F.one_hot(x, len(old)).sum(1) for x in found]
    both = (one[0] * one[1]).sum(1)
    return (both / (2 * k - both) if union else both / k).float().mean().item()


def rotation(old, new, back=False, squares=False, right_factor=False):
    if squares:
        return torch.linalg.lstsq(new, old).solution
    u, _, v = torch.linalg.svd(new.T @ old)
    r = v.T @ u.T if back else u @ v
    return v if right_factor else r


def rotation_without_mirror(old, new):
    u, _, v = torch.linalg.svd(new.T @ old)
    u[:, -1] *= torch.sign(torch.linalg.det(u @ v))
    return u @ v


class Runs:
    """Stands in for a session: every run has its own made-up matrices, and no training."""

    seeds = (0, 1)

    def run(self, method, seed=0, **changes):
        rng = np.random.default_rng(list(f"{method}{seed}{changes}".encode()))
        matrix = SimpleNamespace(own=rng.random((2, 2)), seen=rng.random((2, 2)))
        return SimpleNamespace(matrix=matrix)


class Rotated:
    """A session whose later network turns the features of the earlier one, and shakes them."""

    seeds = (0, 1)

    def run(self, method, seed=0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(48) // 2 % 4
        images = torch.randn(4, 1, 1, 12, generator=generator)[labels]
        images = images + 0.5 * torch.randn(48, 1, 1, 12, generator=generator)
        turn = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
        shake = 0.4 * torch.randn(12, 12, generator=generator)
        models = [Linear(torch.eye(12)), Linear(turn + shake)]
        return SimpleNamespace(
            models=models, tasks=[SimpleNamespace(test_images=images, test_labels=labels)]
        )


class Linear(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight, images


def lost_by_order(before=(0, 0), after=(1, 0), gallery="own", percent=100):
    found = {}
    for seed in (0, 1, 2):
        matrix = getattr(Runs().run("fine-tuning", class_order_seed=seed).matrix, gallery)
        found[seed] = percent * (matrix[before] - matrix[after])
    return found


def recipes(column, before="initial-", percent=100):
    return {
        name: [percent * Runs().run(before + name, seed).matrix.own[1, column] for seed in (0, 1)]
        for name in ("ce", "triplet", "ce+triplet")
    }


def teachers(gallery="seen", percent=100, reduce=np.mean):
    return {
        kind: [
            percent
            * reduce(getattr(Runs().run("csd", s, teacher_statistics=kind).matrix, gallery)[-1])
            for s in (0, 1)
        ]
        for kind in ("running", "batch")
    }


def nudged(numbers, name, points):
    """A mistake of one test image, in one of the lists."""
    return numbers | {name: [numbers[name][0] + points, *numbers[name][1:]]}


def swapped(numbers):
    return dict(zip(numbers, [*numbers.values()][::-1], strict=True))


def undone(fit=slice(0, None, 2), flip=False):
    before, after = [], []
    for seed in Rotated.seeds:
        run = Rotated().run("fine-tuning", seed)
        images, labels = run.tasks[0].test_images, run.tasks[0].test_labels
        old, new = (unit(model(images)[0].detach()) for model in run.models)
        r = rotation(old[fit], new[fit], back=flip)
        found = [(q @ old[::2].T).argmax(1) for q in (new[1::2], new[1::2] @ r)]
        for values, nearest in zip((before, after), found, strict=True):
            values.append((labels[::2][nearest] == labels[1::2]).float().mean().item())
    return before, after


RIGHT = {  # written differently from the solved notebook
    "1.1": relabel_with_a_loop,
    "1.2": split_by_repeated_cutting,
    "1.3": copies_by_comparing_all,
    "1.4": lambda x, p, g: data.augment(x, p, False, g),
    "2.1": entropy_with_the_maximum_subtracted,
    "2.2": triplet_in_matrices,
    "2.3": lambda f, w: torch.einsum("bd,cd->bc", f, w) / w.norm(dim=1),
    "3.1": kd_by_torch,
    "3.2": csd_with_loops,
    "3.3": a_test_with_assert,
    "3.4": frozen,
    "3.5": lambda s, t, y: losses.csd_loss(s, t, y),
    "4.1": recall_by_sorting,
    "4.2": forgetting_with_loops,
    "4.3": gallery_with_loops,
    "4.4": paired_by_hand,
    "4.6": effect_by_sets,
    "5.1": lambda f, g: 1 - torch.cosine_similarity(f, g),
    "5.2": overlap_in_matrices,
    "5.3": rotation,
}
WRONG = [  # exercise, answer, words of the message that names the mistake
    ("1.1", lambda y, o: torch.tensor(o)[y], "other way round"),
    ("1.1", lambda y, o: y.clone(), "own class numbers"),
    ("1.1", lambda y, o: relabel_with_a_loop(y, o) + 1, "begin at 1"),
    ("1.1", lambda y, o: y.unique(return_inverse=True)[1], "own class numbers"),
    ("1.1", lambda y, o: [list(o).index(c) for c in y], "list, but a tensor"),
    ("1.1", lambda y, o: torch.tensor([o.index(c) for c in y[:-1]]), "shape"),
    ("1.2", split_and_lose_the_rest, "in no task"),
    ("1.2", split_with_a_large_last_task, "last task gets all"),
    ("1.2", split_into_large_chunks, "as large as possible"),
    ("1.2", lambda o, t: [o[i::t] for i in range(t)], "like cards"),
    ("1.2", lambda o, t: [sorted(g) for g in split_by_repeated_cutting(o, t)], "sort the classes"),
    ("1.3", lambda a, b: sum(torch.equal(x, y) for x in a for y in b), "count pairs"),
    ("1.3", lambda a, b: sum(torch.equal(x, y) for x, y in zip(a, b)), "same place"),  # noqa: B905
    ("1.3", copies_by_mean, "sums or means"),
    ("1.3", lambda a, b: copies_by_comparing_all(b, a), "training images that have a copy"),
    ("1.4", lambda *a: crop(*a, same=True), "one random number for the batch"),
    ("1.4", lambda x, p, g: crop(x, p, g, upper=2 * p), "upper end"),
    ("1.4", lambda *a: crop(*a, mode="reflect"), "border is not black"),
    ("1.4", lambda x, p, g: x.roll((1, 1), (2, 3)), "border is not black"),
    ("1.4", lambda *a: crop(*a, both=True), "diagonal"),
    ("1.4", lambda x, p, g: crop(x, p, None), "same seed gives other crops"),
    ("1.4", lambda x, p, g: crop(x, p, g).float() / 255, "stay uint8"),
    ("1.4", crop_with(lambda b, r, c: (r[b], (r[b] + 1) % 5)), "Only 5 of the 25 windows"),
    ("1.4", crop_with(lambda b, r, c: (r[b % 8], c[b % 8])), r"i \+ 8 has the same shift"),
    ("1.4", crop_with(lambda b, r, c: (r[b % 300], c[b % 300])), r"i \+ 300 has the same shift"),
    ("1.4", crop_with(lambda b, r, c: (r[b // 2], c[b // 2])), r"i \+ 1 has the same shift"),
    ("1.4", crop_with(lambda b, r, c: (0, 0) if b % 10 else (r[b], c[b])), "equally likely"),
    ("1.4", crop_with(lambda b, r, c: (0, 0) if b % 10 == 0 else (r[b], c[b])), "equally likely"),
    ("1.4", crop_with(lambda b, *rc: [(x[b] + x[b - 1]) // 2 for x in rc]), "equally likely"),
    ("1.3", lambda a, b: copies_by_comparing_all(a[:, :, :1], b[:, :, :1]), "part of each image"),
    ("1.3", lambda a, b: copies_by_comparing_all(a[:, :1], b[:, :1]), "part of each image"),
    ("1.3", copies_that_are_nearly_equal, "nearly equal"),
    ("1.3", lambda a, b: copies_by_comparing_all(a[:, :, -1:], b[:, :, -1:]), "part of each image"),
    ("1.3", lambda a, b: copies_by_comparing_all(a[:, :, :2], b[:, :, :2]), "to the last row"),
    ("1.3", copies_by_corner_and_sum, "sums or means"),
    ("1.3", copies_in_grey, "sums or means"),
    ("1.3", copies_by_histogram, "not where they are"),
    ("1.4", lambda x, p, g: crop(x, p, g).flip(3), "no window"),
    ("2.1", entropy_by_the_book, "logsumexp"),
    ("2.1", lambda z, y: F.cross_entropy(z, y, reduction="sum"), "add up over the batch"),
    ("2.1", lambda z, y: F.nll_loss(F.log_softmax(z, 0), y), "dim=0"),
    ("2.1", lambda z, y: F.log_softmax(z, 1)[range(len(y)), y].mean(), "minus sign"),
    ("2.1", lambda z, y: F.cross_entropy(z, y).detach(), "cut off from the graph"),
    ("2.1", lambda z, y: F.cross_entropy(z, y, reduction="none"), "a single one|shape"),
    ("2.1", half_detached(F.cross_entropy), "part of it detached"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, hardest=False), "easiest positive"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, negative="min"), "easiest negative"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, mean=True), "mean over all anchors"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, scale=False), "length 1"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, flip=-1), "sign"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, 0), "margin is missing"),
    ("2.2", half_detached(triplet_in_matrices), "part of it detached"),
    ("2.3", F.linear, "rows are not scaled"),
    ("2.3", lambda f, w: unit(f) @ unit(w).T, "features as well"),
    ("2.3", lambda f, w: f @ (w / w.norm(dim=0)).T, "columns"),
    ("2.3", lambda f, w: unit(w) @ f.T, "shape"),
    ("3.1", lambda *a: kd_by_torch(*a, power=2), "T²"),
    ("3.1", kd_reversed, "wrong way round"),
    ("3.1", kd_after_softmax_over_all, "before"),
    ("3.1", lambda *a: kd_by_torch(*a, reduction="mean"), "number of classes"),
    ("3.1", lambda s, t, temp: kd_by_torch(s, t, 1), "temperature is missing"),
    ("3.1", lambda s, t, temp: kd_by_torch(s.flip(1), t.flip(1), temp), "last"),
    ("3.1", half_detached(kd_by_torch), "part of it detached"),
    ("3.2", lambda *a: csd_with_loops(*a, itself=True), "still contains the anchor itself"),
    ("3.2", lambda *a: csd_with_loops(*a, own=False), "own teacher"),
    ("3.2", lambda *a: csd_with_loops(*a, scale=False), "length 1"),
    ("3.2", lambda *a: csd_with_loops(*a, total=True), "add up over the positives"),
    ("3.2", lambda *a: csd_with_loops(*a, outside=True), "logarithm afterwards"),
    ("3.2", lambda s, t, y, temp: csd_with_loops(s, t, y, 1.0), "temperature is ignored"),
    ("3.2", lambda s, t, y, temp: csd_with_loops(t, s, y, temp), "changed places"),
    ("3.2", lambda s, t, y, temp: losses.csd_loss_paper(s, t, y), "Eq. 8"),
    ("3.2", csd_with_exp, "logsumexp"),
    ("3.2", lambda *a: csd_with_loops(*a).item(), "float, but a tensor"),
    ("3.2", lambda s, t, y, temp: csd_with_loops(s.detach(), t, y, temp), "cut off from the graph"),
    ("3.2", half_detached(csd_with_loops), "part of it detached"),
    ("1.4", lambda x, p, g: crop(x[:1].expand_as(x), p, g), "one window of one image"),
    ("1.4", lambda x, p, g: crop(x[:, :1].expand_as(x), p, g), "one window of one image"),
    ("1.4", crop_channel_by_channel, "one window of one image"),
    ("1.4", lambda x, p, g: crop(x, 2, g), "With padding 1"),
    ("1.2", lambda o, t: [np.int64(len(o) // t)] * t, "how many classes"),
    ("3.3", lambda loss: True, "catches 0 of 11"),
    ("3.3", lambda loss: False, "rejects the right loss"),
    ("3.3", a_test_on(S, T, PAIRS, exact=True), "with a tolerance"),
    ("3.3", a_test_on(unit(S), unit(T), PAIRS), "length 1"),
    ("3.3", a_test_on(S, T, PAIRS, temperature=1.0), "temperature"),
    ("3.3", a_test_on(S, T, ALONE), "slip|passes your test"),
    ("3.3", lambda loss: 1.0, "return True"),
    ("3.4", lambda m: frozen(m, copied=False), "share their weights"),
    ("3.4", lambda m: frozen(m, evaluated=False), "train mode"),
    ("3.4", lambda m: frozen(m, stopped=False), "ask for gradients"),
    ("3.4", frozen_with_the_same_buffers, "share their weights"),
    ("3.4", rebuilt, "differ"),
    ("3.4", lambda m: m.state_dict(), "not a network"),
    ("3.5", lambda s, t, y: torch.ones(()), "does not depend on the student"),
    ("3.5", lambda s, t, y: F.cosine_similarity(s, t.detach()).mean(), "sign"),
    ("3.5", lambda s, t, y: F.mse_loss(s, t), "flows into the teacher"),
    ("3.5", lambda s, t, y: F.mse_loss(s, t.detach(), reduction="none"), "single number"),
    ("3.5", lambda s, t, y: F.mse_loss(s, t.detach()).reshape(1), "single number"),
    (
        "3.5",
        lambda s, t, y: ((s - t.detach()).pow(2).sum(1) * torch.arange(len(y))).sum(),
        "shuffled",
    ),
    ("4.1", lambda *a: recall_by_sorting(*a, itself=True), "finds itself"),
    ("4.1", lambda *a: recall_by_sorting(*a, off=1), "off by one"),
    ("4.1", lambda *a: recall_by_sorting(*a, share=True), "precision"),
    ("4.1", lambda *a: recall_by_sorting(*a, strict=False), "ties"),
    ("4.1", lambda *a: recall_by_sorting(*a, scale=False), "length 1"),
    ("4.1", lambda *a: recall_by_sorting(*a, lonely=True), "leave it out"),
    ("4.2", lambda m: forgetting_with_loops(m, sign=-1), "sign"),
    ("4.2", forgetting_from_the_diagonal, "backward transfer"),
    ("4.2", lambda m: forgetting_with_loops(m, first=0), "before the task was learned"),
    ("4.2", lambda m: forgetting_with_loops(m, last=0), "includes the last row"),
    ("4.2", lambda m: forgetting_with_loops(m, percent=100), "percent"),
    (
        "4.3",
        lambda f, y, a, b, n: gallery_with_loops(f, y, a, b, n, gallery=lambda c: a <= c < b),
        "own task only",
    ),
    (
        "4.3",
        lambda f, y, a, b, n: gallery_with_loops(f, y, a, b, n, gallery=lambda c: True),
        "not arrived",
    ),
    (
        "4.3",
        lambda f, y, a, b, n: gallery_with_loops(f, y, a, b, n, queries=lambda c: c < n),
        "all images be queries",
    ),
    ("4.3", lambda *a: gallery_with_loops(*a, itself=True), "finds itself"),
    ("4.4", paired_by_place, "by \\*seed\\*"),
    ("4.4", lambda a, b: paired_by_hand(a, b, ddof=0), "n − 1"),
    ("4.4", lambda a, b: paired_by_hand(b, a), "first method minus second"),
    ("4.6", partial(effect_by_sets, seeds=False), "seed that \\*both"),
    ("4.6", partial(effect_by_sets, one_more=False), "other terms"),
    ("4.6", lambda r, t: sum(effect_by_sets(r, t).values()), "\\*sets\\*|Not right yet"),
    ("5.1", F.cosine_similarity, "cosine itself"),
    ("5.1", lambda f, g: 1 - (f * g).sum(1), "length 1"),
    ("5.1", lambda f, g: (f - g).norm(dim=1), "straight-line"),
    ("5.1", lambda f, g: (1 - F.cosine_similarity(f, g)).mean(), "shape"),
    ("5.2", lambda *a: overlap_in_matrices(*a, itself=True), "counts itself"),
    ("5.2", lambda *a: overlap_in_matrices(*a, ranks=True), "rank by rank"),
    ("5.2", lambda *a: overlap_in_matrices(*a, scale=False), "length 1"),
    ("5.2", lambda *a: overlap_in_matrices(*a, union=True), "Jaccard"),
    ("5.3", lambda *a: rotation(*a, back=True), "way back"),
    ("5.3", lambda *a: rotation(*a, squares=True), "not orthogonal"),
    ("5.3", lambda *a: rotation(*a, right_factor=True), "better rotation exists"),
    ("5.3", lambda f, g: torch.eye(f.shape[1]), "identity"),
    ("1.1", replace_in_place, "replaced again"),
    ("1.1", lambda y, o: relabel_with_a_loop(y, o).float(), "float32, but torch.int64"),
    ("1.1", lambda y, o: relabel_with_a_loop(y, o).int(), "int32, but torch.int64"),
    ("1.2", lambda o, t: split_by_repeated_cutting(range(len(o)), t), "not the class order"),
    ("1.4", lambda x, p, g: crop(x, p, torch.Generator().manual_seed(0)), "Every call gives"),
    ("1.4", lambda x, p, g: crop(x, p, g, upper=p + 1), "twice the padding"),
    ("2.1", entropy_minus_the_largest_of_all, "largest logit of each \\*row"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, nothing=0), "mean of nothing"),
    ("2.2", lambda f, y, m: triplet_in_matrices(f, y, m, alone=True), "no anchor"),
    ("3.1", lambda s, t, temp: kd_by_torch(s, t, temp, chances=True), "wants the \\*logarithm"),
    ("3.2", lambda *a: csd_with_loops(*a) * len(a[2]), "add up over the batch"),
    *(
        ("2.2", partial(triplet_with_masks, zeros=z, alone=a, mean=m), "Multiplying by a mask")
        for z in ("both", "positives", "negatives")
        for a, m in ((False, False), (True, False), (True, True))
        if (z, a) != ("negatives", True)  # who is alone is then told so
    ),
    ("3.2", csd_with_a_mask, "exp\\(0\\) = 1 still counts"),
    ("3.2", lambda *a: csd_with_a_mask(*a, softmax=True), "exp\\(0\\) = 1 still counts"),
    ("3.2", csd_over_negatives, "only images of other classes"),
    ("3.2", csd_without_own_teacher_and_clamp, "mean of nothing is NaN"),
    ("3.5", lambda s, t, y: s.pow(2).mean(), "does not depend on the teacher"),
    ("4.1", recall_by_topk, "pick one of equals"),
    ("4.1", lambda f, y, k: recall_by_topk(f, y, k, leave_out=None), "finds itself"),
    ("4.1", lambda *a: recall_with_zeros(*a, where="best"), "inus infinity"),
    ("4.1", lambda *a: recall_with_zeros(*a, where="own cell"), "inus infinity"),
    ("4.1", lambda *a: recall_with_zeros(*a, where="count"), "inus infinity"),
    ("5.2", lambda a, b, k: overlap_in_matrices(a, b, k, left_out=0), "inus infinity"),
    ("4.4", lambda a, b: (*paired_by_hand(a, b)[:2], win_share(a, b) * 3), "five seeds"),
    ("4.4", spread_of_all_seeds, "over all seeds that each"),
    ("1.2", split_with_larger_last_tasks, "last tasks are the larger"),
    ("2.2", lambda f, y, m: batch_mean_of_triplets(f, y, m), "size of the batch"),
    ("2.2", lambda f, y, m: triplet_of_distances(f, y, m, 1), "distance of two features"),
    ("2.2", lambda f, y, m: triplet_of_distances(f, y, m, 2), "as the paper writes it"),
    ("3.2", lambda *a: csd_with_itself(*a, above=True), "own positives, in the numerator"),
    ("3.2", lambda *a: csd_with_itself(*a, above=False), "divide by their number"),
    ("4.2", lambda m: forgetting_with_loops(m.T), "changed places"),
    ("4.2", forgetting_without_gains, "clamp"),
    ("4.3", lambda *a: gallery_with_loops(*a, scale=False), "cosine"),
    ("5.3", lambda f, g: rotation(f - f.mean(0), g - g.mean(0)), "better rotation exists"),
    ("5.3", lambda f, g: rotation(unit(f), unit(g)), "better rotation exists"),
    ("5.3", rotation_without_mirror, "mirror is allowed"),
    ("1.3", copies_by_squares, "uint8"),
    ("2.1", lambda z, y: F.cross_entropy(z, y), "does the work"),
    ("2.1", lambda z, y: -z.log_softmax(1)[range(len(y)), y].mean(), "does the work"),
    ("2.3", lambda f, w: (f @ unit(w).T).detach(), "cut off from the graph"),
    ("2.3", lambda f, w: f @ (w / w.norm(dim=1, keepdim=True).detach()).T, "part of it detached"),
    ("3.2", csd_over_all_pairs, "First the mean over each anchor's"),
    ("3.2", partial(csd_over_all_pairs, own_teacher=False), "belongs to both"),
    ("4.1", recall_by_raw_distance, "straight-line distance"),
    (
        "4.3",
        lambda *a: gallery_with_loops(*a, distance=True, scale=False),
        "straight-line distance",
    ),
    (
        "4.3",
        lambda f, y, a, b, n: gallery_with_loops(
            f, y, a, b, n, gallery=lambda c: c < n and not a <= c < b
        ),
        "finds an empty gallery",
    ),
    ("4.4", lambda a, b: (*paired_by_hand(a, b)[:2], win_share(a, b)), "share of the seeds"),
    ("5.2", overlap_of_raw_distances, "straight-line distance"),
    ("1.3", copies_by(str), "texts of images"),
    ("1.3", copies_by(lambda x: repr(x.numpy())), "texts of images"),
    *(
        ("1.3", copies_by(lambda x, key=key: key(x).numpy().tobytes()), "sums or means")
        for key in (
            lambda x: x.sum(dim=1),
            lambda x: x.sum(dim=2),
            lambda x: torch.cat([x.sum(dim=1), x.sum(dim=2)], dim=1),
        )
    ),
    *(
        ("1.3", copies_by(lambda x, part=part: x[part].numpy().tobytes()), "part of each image")
        for part in (
            np.s_[-1],
            np.s_[:, ::2, ::2],
            np.s_[:, 1::2, 1::2],
            np.s_[:, :, ::2],
            np.s_[:, :, 1::2],
        )
    ),
    ("1.3", copies_by(lambda x: x[: max(1, len(x) - 1)].numpy().tobytes()), "all\\* channels"),
    ("1.3", copies_by(lambda x: x[-2:].numpy().tobytes()), "all\\* channels"),
    ("1.3", copies_by(lambda x: x.flatten()[::2].numpy().tobytes()), "part of each image"),
    ("1.3", copies_by(lambda x: x.flatten()[::3].numpy().tobytes()), "all\\* pixels"),
    ("1.3", copies_if(lambda a, b: (a == b).float().mean() > 0.999), "One pixel of 1,200"),
    ("1.4", crop_by_rounding, "equally likely.*round"),
    ("2.1", lambda z, y: torch.nn.CrossEntropyLoss()(z, y), "`cross_entropy` does the work"),
    (
        "2.1",
        lambda z, y: -torch.nn.LogSoftmax(1)(z)[range(len(y)), y].mean(),
        "`log_softmax` does the work",
    ),
    (
        "2.1",
        lambda z, y: -torch.special.log_softmax(z, 1)[range(len(y)), y].mean(),
        "`log_softmax` does the work",
    ),
    (
        "2.1",
        lambda z, y: torch.nn.NLLLoss()(log_softmax(z), y),
        "`nll_loss` does the work",
    ),
    ("2.1", lambda z, y: losses.cross_entropy(z, y), "`cross_entropy` does the work"),
    ("2.1", entropy_that_hides_errors, "`cross_entropy` does the work"),
    ("3.4", frozen_with_the_students_batch_norm, "student was frozen too"),
]
MEASURED = ["2.4", "3.4b", "4.5", "5.4"]  # numbers to fill in, not a function
FUNCTIONS = [exercise for exercise in CHECKERS if exercise not in MEASURED]
each_exercise = pytest.mark.parametrize("exercise", FUNCTIONS)


RIGHT_NUMBERS = {
    "4.5": (Runs(), lost_by_order()),
    "2.4": (Runs(), recipes(0), recipes(1)),
    "3.4b": (Runs(), teachers()),
    "5.4": (Rotated(), *undone()),
}
WRONG_NUMBERS = [
    ("4.5", (lost_by_order(percent=1),), "100 times"),
    ("4.5", (lost_by_order(percent=-100),), "wrong way round"),
    ("4.5", (lost_by_order(after=(0, 1)),), "along a row"),
    ("4.5", (lost_by_order(gallery="seen"),), "larger gallery"),
    ("4.5", (lost_by_order((0, 1), (1, 1)),), "column of task 2"),
    ("4.5", ([13.0, 12.0, 15.0],), "keep the dictionary"),
    ("4.5", ({0: 1.0, 1: 2.0, 2: 3.0},), "Not right yet"),
    ("4.5", ({},), "Not all numbers"),
    ("2.4", (recipes(0, percent=1), recipes(1, percent=1)), "100 times"),
    ("2.4", (recipes(1), recipes(0)), "changed places"),
    ("2.4", (recipes(0, before=""), recipes(1, before="")), "after task 2"),
    ("2.4", (recipes(0), {"ce": [], "triplet": [], "ce+triplet": []}), "Not all numbers"),
    ("3.4b", ({"running": [], "batch": []},), "Not all numbers"),
    ("3.4b", (teachers(percent=1),), "100 times"),
    ("3.4b", (teachers("own"),), "own classes"),
    ("3.4b", (teachers(reduce=lambda row: row[0]),), "task 1 alone"),
    ("3.4b", (nudged(teachers(), "batch", 0.3),), "Not right yet.*something else for batch[.]"),
    ("3.4b", (swapped(teachers()),), "something else for running; batch"),
    ("3.4b", (teachers() | {"more": [1.0]},), "keys"),
    ("2.4", (recipes(0), nudged(recipes(1), "triplet", -0.3)), "else for unknown, triplet[.]"),
    ("5.4", (undone()[0], [value + 0.02 for value in undone()[1]]), "else for after[.]"),
    ("5.4", undone(slice(None)), "on all images"),
    ("5.4", undone(slice(1, None, 2)), "odd half"),
    ("5.4", undone(flip=True), "wrong way round"),
    ("5.4", undone()[::-1], "changed places"),
    ("5.4", ([], []), "Not all numbers"),
]


@pytest.mark.parametrize("exercise", MEASURED)
def test_accepts_the_right_numbers(exercise):
    verdict = CHECKERS[exercise](*RIGHT_NUMBERS[exercise])
    assert verdict, verdict.message


@pytest.mark.parametrize(
    "exercise, answers, words", WRONG_NUMBERS, ids=[f"{e}-{w}" for e, _, w in WRONG_NUMBERS]
)
def test_names_the_mistake_in_wrong_numbers(exercise, answers, words):
    verdict = CHECKERS[exercise](RIGHT_NUMBERS[exercise][0], *answers)
    assert not verdict
    assert re.search(words, verdict.message), verdict.message
    assert not re.search(r"\d\.\d\d", verdict.message), "it tells what was to be measured"


def test_rounded_numbers_are_right():
    for exercise, digits in (("2.4", 1), ("3.4b", 1), ("5.4", 3)):
        session, *numbers = RIGHT_NUMBERS[exercise]
        assert CHECKERS[exercise](session, *(rounded(each, digits) for each in numbers))


def rounded(numbers, digits):
    if isinstance(numbers, dict):
        return {name: rounded(values, digits) for name, values in numbers.items()}
    return [round(float(value), digits) for value in numbers]


@pytest.mark.parametrize(
    "right",
    [
        copies_by(lambda image: bytes(image.flatten().tolist())),
        copies_by(lambda image: tuple(image.flatten().tolist())),
        copies_by(lambda image: str(image.tolist())),
        copies_if(torch.equal),
        copies_if(lambda a, b: np.array_equal(a.numpy(), b.numpy())),
        copies_if(lambda a, b: (a.int() - b.int()).abs().sum() == 0),
    ],
)
def test_copies_may_be_found_in_many_ways(right):
    verdict = CHECKERS["1.3"](right)
    assert verdict, verdict.message


def test_a_helper_of_ones_own_may_be_called_like_a_function_of_torch():
    verdict = CHECKERS["2.1"](entropy_with_a_helper)
    assert verdict, verdict.message
    before = F.cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    assert before.item() == pytest.approx(math.log(2))  # torch is as it was


@pytest.mark.parametrize("draws", range(20))
def test_right_crops_are_even_enough_whatever_is_drawn(draws):
    def right(images, padding, generator):
        torch.rand(2000 * draws, generator=generator)  # a crop of 1,000 images draws 2,000 numbers
        return crop(images, padding, generator)

    verdict = CHECKERS["1.4"](right)
    assert verdict, verdict.message


def test_a_test_of_csd_may_name_the_temperature_and_use_float64():
    def test(loss):
        args = S.double(), T.double(), PAIRS
        return a_test_on(*args)(lambda *a: loss(*a[:3], temperature=a[3]))

    verdict = CHECKERS["3.3"](test)
    assert "rejects" not in verdict.message and "stops with" not in verdict.message


def test_a_term_may_be_small():
    assert CHECKERS["3.5"](lambda s, t, y: 1e-5 * (1 - F.cosine_similarity(s, t.detach())).mean())


def test_measuring_checkers_run_nothing_before_the_numbers_are_there():
    assert not CHECKERS["4.5"](None, {}) and not CHECKERS["5.4"](None, [], [])


@each_exercise
def test_accepts_the_solution_of_the_solved_notebook(exercise):
    verdict = CHECKERS[exercise](answer(SOLVED, exercise))
    assert verdict, verdict.message


@each_exercise
def test_accepts_a_right_answer_that_is_written_differently(exercise):
    verdict = CHECKERS[exercise](RIGHT[exercise])
    assert verdict, verdict.message


@each_exercise
def test_rejects_the_stub_of_the_students_notebook(exercise):
    verdict = CHECKERS[exercise](answer(STUDENT, exercise))
    assert not verdict and "nothing yet" in verdict.message


# torch warns of the very mistake that one of these answers makes.
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")
@pytest.mark.parametrize(
    "exercise, wrong, words", WRONG, ids=[f"{e}-{w.split()[0]}" for e, _, w in WRONG]
)
def test_names_the_mistake_in_a_wrong_answer(exercise, wrong, words):
    verdict = CHECKERS[exercise](wrong)
    assert not verdict
    assert re.search(words, verdict.message), verdict.message


def test_every_checker_is_shown_at_least_three_wrong_answers():
    shown = [exercise for exercise, *_ in WRONG + WRONG_NUMBERS]
    assert [e for e in CHECKERS if shown.count(e) < 3] == []


@each_exercise
def test_an_answer_that_stops_with_an_error_is_told_which(exercise):
    def broken(*args):
        raise KeyError("no such thing")

    verdict = CHECKERS[exercise](broken)
    assert not verdict and "KeyError" in verdict.message


def test_an_answer_that_changes_its_arguments_is_told_so():
    def greedy(features, weights):
        weights /= weights.norm(dim=1, keepdim=True)
        return features @ weights.T

    assert "changes the tensor" in CHECKERS["2.3"](greedy).message


def test_an_unknown_mistake_is_shown_on_the_first_case_that_differs():
    verdict = CHECKERS["5.1"](lambda f, g: torch.full((len(f),), 0.5))
    assert re.search(r"Not right yet. 0, 90 and 180 degrees: .*0.5.*expected.*0", verdict.message)


def test_progress_counts_what_was_solved_in_this_session(capsys):
    VERDICTS.clear()
    CHECKERS["2.1"](RIGHT["2.1"])
    CHECKERS["2.2"](lambda *a: None)
    course.progress("2")
    assert "Solved: 1 of 4" in capsys.readouterr().out
    CHECKERS["2.1"](lambda *a: None)  # the last verdict counts
    course.progress("2")
    assert "Solved: 0 of 4" in capsys.readouterr().out


def test_an_exercise_inside_a_chapter_is_the_one_of_the_solved_notebook(
    tool, monkeypatch, tmp_path
):
    """So is each student's copy; one that is changed is found, in whichever chapter it is."""
    exercises = tool("exercises")
    for name in ("CHAPTERS", "STUDENT"):
        shutil.copytree(getattr(exercises, name), tmp_path / name)
        monkeypatch.setattr(exercises, name, tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["exercises.py", "--check"])
    chapters = exercises.places()
    assert chapters.keys() >= {"2.2", "3.2", "4.1", "4.2"} and len(set(chapters.values())) == 7
    exercises.main()  # ends with an error if any copy is not what the solved notebooks make
    for number, name in chapters.items():
        path = tmp_path / "CHAPTERS" / name
        notebook = nbformat.read(path, as_version=4)
        card = next(c for c in notebook.cells if c.id == f"core-{number.replace('.', '-')}")
        assert card.source.startswith(f"### Exercise {number}: ")
        changed = path.read_text("utf-8").replace(f"Exercise {number}:", f"Exercise {number} :")
        path.write_text(changed, "utf-8")
        with pytest.raises(SystemExit, match=name):
            exercises.main()
        path.write_text(changed.replace(f"Exercise {number} :", f"Exercise {number}:"), "utf-8")


@pytest.mark.parametrize("path", STUDENT, ids=lambda p: p.stem)
def test_a_changed_copy_of_students_is_found(tool, monkeypatch, tmp_path, path):
    """Also one that has the same name as a chapter."""
    exercises = tool("exercises")
    shutil.copytree(path.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(exercises, "STUDENT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["exercises.py", "--check"])
    (tmp_path / path.name).write_text(path.read_text("utf-8").replace("Goal", "goal"), "utf-8")
    with pytest.raises(SystemExit, match=path.name):
        exercises.main()


def test_a_changed_copy_is_found_and_graded_copies_hold_no_solution(tmp_path):
    tool = [ROOT / "tools" / "exercises.py", "--graded", tmp_path]
    assert warm.run(*tool).returncode == 0
    for path in tmp_path.glob("*.ipynb"):
        text = path.read_text()
        assert "<summary>Hint 2" in text
        assert "SOLUTION" not in text and "<summary>Solution" not in text
    target = tmp_path / SOLVED[0].name
    target.write_text(target.read_text().replace("Your code here", "Mine"))
    done = warm.run(*tool, "--check")
    assert done.returncode == 1 and target.name in done.stderr


def test_a_learners_own_term_is_trained_with_and_leaves_no_trace(monkeypatch, tmp_path):
    seen = []

    def term(student, teacher, labels):
        seen.append(len(labels))
        return (1 - F.cosine_similarity(student, teacher)).mean()

    session = course.Session("smoke", "cpu", (0,))
    one_epoch = TrainConfig(dataset="digits", epochs=1, device="cpu")
    monkeypatch.setenv("CSD_RUNS", str(tmp_path))
    monkeypatch.setattr(course.Session, "config", lambda self, m, s: replace(one_epoch, method=m))
    matrix = session.try_term(term)
    assert seen and matrix.own.shape == (2, 2)
    assert "own" not in methods.TERMS
