"""Checkers of the exercises on data splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csd_lib import data
from csd_lib.course.checkers.cases import random_labels
from csd_lib.course.checkers.judge import Cases, Mistake, Mistakes, call, compare, exercise


@exercise("1.1", "every class gets its place in the order.")
def check_relabel(relabel: Callable[[Tensor, Sequence[int]], Tensor]) -> None:
    """Exercise 1.1: the position of each class in the class order."""

    def right(labels: Tensor, order: Sequence[int]) -> Tensor:
        return torch.tensor([order.index(label) for label in labels.tolist()])

    def replace_one_after_the_other(labels: Tensor, order: Sequence[int]) -> Tensor:
        for position, c in enumerate(order):
            labels[labels == c] = position
        return labels

    shuffled = data.class_order_from_seed(10, 3)
    cases = {
        "order (1, 2, 0)": (torch.tensor([1, 0, 2, 1]), (1, 2, 0)),
        "order (0, 1, 2)": (torch.tensor([0, 2, 1]), (0, 1, 2)),
        "a random order of ten classes": (random_labels(40, 10), shuffled),
    }
    mistakes = {
        "You look up which class stands at a position, `class_order[label]`. The other way "
        "round is asked: at which position does the class stand?": lambda y, o: torch.tensor(o)[y],
        "These are still the data set's own class numbers.": lambda y, o: y,
        "You replace one class after the other in the same tensor, so a label that was just "
        "written is taken for a class and replaced again. Write into a new tensor.": (
            replace_one_after_the_other
        ),
        "Your labels begin at 1. The head's first row is row 0.": lambda y, o: right(y, o) + 1,
        "You number the classes in the order in which they come up among the images, not in "
        "the class order.": lambda y, o: torch.tensor(
            [list(dict.fromkeys(y.tolist())).index(c) for c in y.tolist()]
        ),
    }
    compare(relabel, right, cases, mistakes)


@exercise("1.2", "every class is in exactly one task, and the sizes differ by at most one.")
def check_split_classes(split_classes: Callable[[Sequence[int], int], Any]) -> None:
    """Exercise 1.2: cut the class order into tasks."""

    def right(order: Sequence[int], tasks: int) -> list[tuple[int, ...]]:
        return [tuple(int(c) for c in group) for group in np.array_split(np.array(order), tasks)]

    def answer(order: Sequence[int], tasks: int) -> list[tuple[int, ...]] | None:
        groups = split_classes(order, tasks)
        if isinstance(groups, dict):
            raise Mistake("It returns a dictionary; return a list with one tuple for each task.")
        if isinstance(groups, list | tuple) and any(
            isinstance(group, int | np.integer) for group in groups
        ):
            if len(groups) == len(order) != tasks:
                raise Mistake(
                    "You return one flat list of classes. Return a tuple of classes for each task."
                )
            raise Mistake(
                "You return how many classes each task has. Return the classes themselves, one "
                "tuple for each task."
            )
        return None if groups is None else [tuple(int(c) for c in group) for group in groups]

    def chunks(order: Sequence[int], size: int) -> list[tuple[int, ...]]:
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]

    shuffled = data.class_order_from_seed(10, 3)
    cases = {
        "6 classes, 2 tasks": ((3, 0, 5, 1, 4, 2), 2),
        "10 classes, 3 tasks": (tuple(range(10)), 3),
        "10 classes in a random order, 4 tasks": (shuffled, 4),
        "3 classes, 3 tasks": ((2, 0, 1), 3),
        "5 classes, 1 task": ((4, 3, 2, 1, 0), 1),
    }
    mistakes = {
        "Some classes are in no task: `len(order) // num_tasks` rounds down, and the rest is "
        "lost.": lambda o, t: chunks(o, len(o) // t)[:t],
        "The last task gets all the classes that are left over. Tasks should differ by at most "
        "one class, the first ones being larger.": (
            lambda o, t: [*chunks(o, len(o) // t)[: t - 1], o[(t - 1) * (len(o) // t) :]]
        ),
        "The first task gets all the classes that are left over. Give one to each of the first "
        "tasks.": lambda o, t: [
            o[: len(o) - (t - 1) * (len(o) // t)],
            *chunks(o[len(o) - (t - 1) * (len(o) // t) :], len(o) // t),
        ],
        "Your last tasks are the larger ones. The first ones get the classes that are left "
        "over.": lambda o, t: [g[::-1] for g in right(o[::-1], t)[::-1]],  # right, but from the end
        "Your tasks are as large as possible, so the last one is too small, or missing. They "
        "should differ by at most one class.": lambda o, t: chunks(o, -(-len(o) // t)),
        "You deal the classes out like cards, one to each task in turn. Neighbours in the "
        "class order belong into the same task.": lambda o, t: [tuple(o[i::t]) for i in range(t)],
        "You cut the numbers 0, 1, 2, …, not the class order that was given.": (
            lambda o, t: right(range(len(o)), t)
        ),
        "You sort the classes. The class order decides, inside a task too.": (
            lambda o, t: [tuple(sorted(g)) for g in right(o, t)]
        ),
    }
    compare(answer, right, cases, mistakes)


def _copies_and_near_copies() -> Cases:
    """Training and test images for exercise 1.3.

    Each near copy shares with a training image what some wrong answer compares instead of all
    pixels: a part, a sum, the values without their places, or the text that torch prints.
    """
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8)
    fresh = torch.randint(256, (5, 1, 4, 4), generator=generator, dtype=torch.uint8)
    twice = torch.cat([train, train[:3]])
    last_row, in_rows, in_columns = (train[5:7].clone() for _ in range(3))
    last_row[:, 0, 3, 1] ^= 1
    for i, line in enumerate((1, 3)):
        in_rows[i, 0, line, 1:3] = in_rows[i, 0, line, 1:3].flip(0)
        in_columns[i, 0, 1:3, line] = in_columns[i, 0, 1:3, line].flip(0)
    inner = train.clamp(1, 254)  # so that 1 can be added and taken away
    balanced = inner[5:7].clone()
    balanced[:, 0, 1::2, 1::2] += torch.tensor([[1, 255], [255, 1]], dtype=torch.uint8)  # 255: -1
    colours = train.reshape(4, 3, 4, 4)
    recoloured = colours[:3].clone()
    recoloured[range(3), range(3)] ^= 255
    one_pixel = (colours[0].flatten() ^ torch.eye(48, dtype=torch.uint8)).reshape(48, 3, 4, 4)
    large = torch.randint(256, (2, 3, 20, 20), generator=generator, dtype=torch.uint8)
    middle, near_the_end = large.clone(), large.clone()
    middle[:, :, 3:17, 3:17] ^= 255  # all that the text `str(image)` leaves out, and by much
    near_the_end[:, 2, 18, 18] ^= 1
    return {
        "no copies": (train, fresh),
        "two copies at other places": (train, torch.cat([fresh, train[7:9]])),
        "training images that are there twice": (twice, torch.cat([train[:1], fresh])),
        "a test image that is there twice": (train, torch.cat([fresh, train[4:5], train[4:5]])),
        "mirrored images, which are no copies": (train, train[:2].flip(3)),
        "images that differ in one pixel of the last row, by 1": (train, last_row),
        "images that differ in every pixel, by 1": (train, train[5:7] ^ 1),
        "images that differ in every pixel, by 16": (train, train[5:7] ^ 16),
        "images in which two pixels have changed places": (train, torch.cat([in_rows, in_columns])),
        "images with the sums of a training image's rows and columns": (inner, balanced),
        "three channels, of which one differs": (colours, torch.cat([recoloured, colours[3:]])),
        "three channels that have changed places": (colours, colours[:2].flip(1)),
        "images that differ in one pixel, each in another one": (colours, one_pixel),
        "images of 20 × 20 pixels that differ in the middle": (large, middle),
        "images of 20 × 20 pixels that differ in one pixel, by 1": (large, near_the_end),
    }


@exercise("1.3", "copies are found wherever they are, and each test image counts once.")
def check_count_copies(count_copies: Callable[[Tensor, Tensor], int]) -> None:
    """Exercise 1.3: test images that are exact copies of a training image."""

    def right(
        train: Tensor, test: Tensor, key: Callable[[Tensor], Any] = lambda x: x.numpy().tobytes()
    ) -> int:
        known = {key(image) for image in train}
        return sum(key(image) in known for image in test)

    def pairs(train: Tensor, test: Tensor) -> int:
        return int((train.flatten(1)[:, None] == test.flatten(1)[None]).all(dim=2).sum())

    def same_place(train: Tensor, test: Tensor) -> int:
        n = min(len(train), len(test))
        return int((train[:n] == test[:n]).flatten(1).all(dim=1).sum())

    def nearly_equal(train: Tensor, test: Tensor) -> int:
        apart = (train.flatten(1).double()[:, None] - test.flatten(1).double()[None]).abs()
        return int((apart.mean(dim=2) < 5).any(dim=0).sum())

    mistakes: Mistakes = {
        "You count pairs. A test image that equals two training images is still one test "
        "image.": pairs,
        "You compare the images at the same place of both lists only.": same_place,
        "You compare sums or means of pixels. Different images can share those.": [
            lambda a, b, of=of: right(of(a), of(b))
            for of in (
                lambda x: x.sum((1, 2, 3)),
                lambda x: x.sum(1),
                lambda x: x.sum(2),
                lambda x: x.sum(3),
                lambda x: torch.stack([x[:, 0, 0, 0].long(), x.sum((1, 2, 3))], dim=1),
                lambda x: torch.cat([x.sum(2), x.sum(3)], dim=2),
            )
        ],
        "You compare which values the pixels have, and not where they are.": (
            lambda a, b: right(a.flatten(1).sort(1).values, b.flatten(1).sort(1).values)
        ),
        "You look at a part of each image only. In a copy *every* pixel of every channel is the "
        "same.": [
            lambda a, b, part=part: right(a[part], b[part])
            for part in (
                np.s_[:, :, :1],
                np.s_[:, :, -1:],
                np.s_[:, :1],
                np.s_[:, -1:],
                np.s_[:, :, :1, :1],
                np.s_[:, 0, 0],
                np.s_[:, :, ::2, ::2],
                np.s_[:, :, 1::2, 1::2],
                np.s_[:, :, :, ::2],
                np.s_[:, :, :, 1::2],
            )
        ],
        "You compare the texts of images. Above 1,000 values `str` leaves out the middle and "
        "writes `...` for it, so images that differ there look alike.": partial(right, key=str),
        "You take images that are nearly equal for copies. A copy is equal in every pixel.": (
            nearly_equal
        ),
        "You count each copied image once. If it is in the test set twice, both are leaks.": (
            lambda a, b: right(a, torch.unique(b, dim=0))
        ),
        "You count training images that have a copy in the test set. The question is about "
        "test images.": lambda a, b: right(b, a),
    }
    hints = {
        "images that differ in one pixel of the last row, by 1": "Compare *all* pixels, to the "
        "last row.",
        "images that differ in every pixel, by 16": "Do you square differences? The square of 16 "
        "is 256, which uint8 takes for 0. Compare with `==`.",
        "images with the sums of a training image's rows and columns": "Different images can share "
        "sums, of rows and columns too. Compare the pixels themselves.",
        "three channels, of which one differs": "Compare *all* channels.",
        "images that differ in one pixel, each in another one": "Some pixels are left out. Compare "
        "*all* pixels of every channel.",
        "images of 20 × 20 pixels that differ in one pixel, by 1": "One pixel of 1,200 differs, "
        "so they are no copies. Do you leave it out, or call images equal that differ by little?",
    }
    cases = _copies_and_near_copies()
    compare(count_copies, right, cases, mistakes, hints=hints)


@exercise("1.4", "black border, all shifts possible, random numbers for each image, repeatable.")
def check_random_crop(random_crop: Callable[[Tensor, int, torch.Generator], Tensor]) -> None:
    """Exercise 1.4: shift every image of a batch by its own random amount."""
    batch, padding = 1000, 2
    # The first channel numbers the pixels, the two others the images.
    pixels = (1 + torch.arange(48)).reshape(1, 1, 8, 6).repeat(batch, 1, 1, 1)
    names = torch.arange(batch).reshape(batch, 1, 1, 1).expand_as(pixels)
    images = torch.cat([pixels, 1 + names % 200, 1 + names // 200], dim=1).to(torch.uint8)
    seeded = torch.Generator().manual_seed(0)
    crops = call(
        lambda x: random_crop(x, padding, seeded), f"{batch} images of 8 × 6 pixels", images
    )
    if not isinstance(crops, Tensor) or crops.shape != images.shape:
        shape = list(crops.shape) if isinstance(crops, Tensor) else type(crops).__name__
        raise Mistake(f"The result is {shape}, but {list(images.shape)} is expected.")
    if crops.dtype != torch.uint8:
        raise Mistake(f"The result is {crops.dtype}; the images should stay uint8.")
    padded = F.pad(images[0, 0], (padding,) * 4)
    size = 2 * padding + 1
    windows = padded.unfold(0, 8, 1).unfold(1, 6, 1).reshape(-1, 8, 6)
    match = (crops[:, 0, None] == windows[None]).flatten(2).all(dim=2)
    if not match.any(dim=1).all():
        wrong = crops[~match.any(dim=1)][0, 0]
        if (wrong != 0).all():
            raise Mistake(
                "The border is not black. Pad with zeros, before normalisation; `roll` and "
                "reflection bring pixels back in on the other side."
            )
        raise Mistake(
            "Some results are no window of the padded image: an image was shifted by more than "
            "the padding, mirrored, or cut in pieces."
        )
    places = match.float().argmax(dim=1)
    inside = (windows[places] != 0)[:, None]
    if not torch.equal(crops[:, 1:], images[:, 1:] * inside):
        raise Mistake(
            "The three channels of a result do not show one window of one image: cut result i "
            "from image i, and shift all its channels alike."
        )
    rows, columns = places // size, places % size
    if len(places.unique()) == 1:
        raise Mistake(
            "All images of the batch are shifted alike: there is one random number for the "
            "batch. Take one row and one column for each image."
        )
    if len(rows.unique()) == 1 or len(columns.unique()) == 1:
        raise Mistake(
            "Images are shifted in one direction only. Each needs a random row *and* a random "
            "column."
        )
    if (rows == columns).all():
        raise Mistake(
            "The same random number is used for rows and columns: images move on a diagonal."
        )
    if rows.max() <= padding and columns.max() <= padding:
        raise Mistake(
            f"Your windows start at rows and columns up to {padding}, the padding. The padded "
            f"image is larger by twice the padding, so they can start from 0 to {size - 1}."
        )
    if rows.max() < size - 1 or columns.max() < size - 1 or min(rows.min(), columns.min()) > 0:
        raise Mistake(
            f"With padding {padding} there are {size} possible shifts in each direction, but "
            f"not all of them come up in {batch} images. `randint` leaves its upper end out."
        )
    # How often a right answer is refused by chance, whatever its order of draws: each of the 25
    # windows is binomial with n = 1000 and p = 1/25. One of them comes up fewer than 10 times
    # with 25 * P(X <= 9) = 6e-8, and more than 90 times (2.25 * 40) with 25 * P(X > 90) =
    # 2e-11. Whether image i + step has the window of image i is binomial with p = 1/25 too,
    # for any step, and `usual` is never below 1/25: with P(X > 0.29 n), added up over the 500
    # steps, 2e-80. `uneven` has the chi-square distribution with 24 degrees of freedom, which
    # exceeds 90 with 1e-9. (Of 20,000 right answers none came above 64, and of 2,000 that round
    # `4 * rand`, so that corners are four times as rare as the middle, none below 139.)
    counts = places.bincount(minlength=size**2)
    usual = float((counts / batch).square().sum())
    for step in range(1, batch // 2 + 1):
        alike = int((places[step:] == places[:-step]).sum())
        if alike > (usual + 0.25) * (batch - step):
            raise Mistake(
                f"In {alike} of {batch - step} cases image i + {step} has the same shift as "
                f"image i, as if draws were used again. Take one row and one column for *each* "
                f"image."
            )
    if counts.max() > 2.25 * batch / (counts > 0).sum():
        raise Mistake(
            f"One window comes up in {counts.max()} of {batch} images. All {size**2} must be "
            f"equally likely."
        )
    uneven = float(((counts - batch / size**2).square() / (batch / size**2)).sum())
    if counts.min() > 0 and uneven > 90:  # if one never comes up, the next sentence fits
        raise Mistake(
            f"The windows come up from {counts.min()} to {counts.max()} times in {batch} "
            f"images, less evenly than by chance. All {size**2} must be equally likely: "
            f"rounding with `round`, for example, halves the share of the first and last place."
        )
    if counts.min() < 10:
        raise Mistake(
            f"Only {int((counts >= 10).sum())} of the {size**2} windows come up 10 times or "
            f"more in {batch} images. Draw the row and the column independently of each other, "
            f"for each image."
        )
    closer = F.pad(images[0, 0], (1,) * 4).unfold(0, 8, 1).unfold(1, 6, 1).reshape(-1, 8, 6)
    near = random_crop(images, 1, seeded)[:, 0, None]
    if near.shape[2:] != (8, 6) or not (near == closer).flatten(2).all(dim=2).any(dim=1).all():
        raise Mistake("With padding 1 images are shifted by more: use the argument `padding`.")
    if torch.equal(crops, random_crop(images, padding, seeded)):
        raise Mistake(
            "Every call gives the same crops. The seed belongs outside: draw from `generator` "
            "as it comes."
        )
    again = random_crop(images, padding, torch.Generator().manual_seed(0))
    if not torch.equal(crops, again):
        raise Mistake("The same seed gives other crops: draw your random numbers from `generator`.")
