"""Make the embedded subset of Fashion-MNIST from the official files: all ten classes, equally many.

    python tools/fashion.py FOLDER    # with the four files named train-images-idx3-ubyte.gz, ...

The files come from the authors' repository (https://github.com/zalandoresearch/fashion-mnist) and,
on Debian, from the package dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist. What is
inside them must have the SHA-256 below; the .gz around it may differ from place to place.

Which images are taken is drawn from a seed, before anything was trained on them, and never again:
the same numbers give the same images, and so the same hash, which is printed at the end.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import math
import sys
from pathlib import Path

import numpy as np

from csd_lib.datasets import FASHION, load_dataset
from csd_lib.files import write_atomically

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TRAIN, TEST, SEED = 500, 100, 0  # images of each class, and what they are drawn with


def read_idx(content: bytes) -> np.ndarray:
    """Read an array of bytes in the idx format: 0, 0, 8, axes; four bytes a length; the values."""
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        sys.exit("error: this is no idx file of bytes")
    shape = tuple(np.frombuffer(content, ">u4", count=content[3], offset=4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(values) != math.prod(shape):
        sys.exit(f"error: an idx file of shape {shape} has {len(values):,} values")
    return values.reshape(shape)


def read_official(folder: Path, name: str) -> np.ndarray:
    """Read one of the four files, and refuse another content."""
    path = folder / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        sys.exit(f"error: {path} cannot be read ({error})")
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        sys.exit(f"error: {path} does not hold the official {name}")
    return read_idx(content)


def choose(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw so many images of each class; returns their places in rising order."""
    members = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
    return np.sort(np.concatenate([generator.permutation(m)[:count] for m in members]))


def subset(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the file that ``datasets.read_npz`` reads."""
    generator = np.random.default_rng(SEED)
    arrays = {"class_names": np.array(CLASSES)}
    for part, official, count in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        labels = read_official(folder, f"{official}-labels-idx1-ubyte")
        chosen = choose(labels, count, generator)
        images = read_official(folder, f"{official}-images-idx3-ubyte")
        arrays[f"{part}_images"] = images[chosen][..., None]
        arrays[f"{part}_labels"] = labels[chosen]
    return arrays


def main() -> None:
    """Write the file beside its licence, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the four official files are")
    arrays = subset(parser.parse_args().folder)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(FASHION, write)
    made = load_dataset("fashion")
    size, digest = FASHION.stat().st_size, hashlib.sha256(FASHION.read_bytes()).hexdigest()
    print(
        f"{FASHION}: {len(made.train_labels):,} training and {len(made.test_labels):,} test images"
    )
    print(f"{size / 1e6:.2f} MB, SHA-256 {digest}; of images and labels {made.sha256()}")


if __name__ == "__main__":
    main()
