"""Figures of records, and the one style of all figures: colour-blind safe, with markers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from PIL import Image

from csd_lib import InputError, checks, identity
from csd_lib.files import make_folder, write_atomically
from csd_lib.methods import METHODS, TERMS, get_method
from csd_lib.paper import comparison
from csd_lib.paper.comparison import Table, tables
from csd_lib.paper.report import Group, shared_changes
from csd_lib.paper.seeds import GALLERIES
from csd_lib.record import Record

# Okabe and Ito's colours, which readers with any common colour blindness can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, RED = "#CC79A7", "#56B4E9", "#D55E00"
GREY, BLACK = "#8C8C8C", "#000000"
WINE = "#882255"  # of Paul Tol's muted colours, for the ninth method
METHOD_STYLE: dict[str, dict[str, Any]] = {
    "initial": dict(color=BLACK, marker="X", linestyle=":"),
    "fine-tuning": dict(color=ORANGE, marker="s", linestyle="--"),
    "lwf": dict(color=SKY, marker="^", linestyle="-."),
    "mmd": dict(color=GREEN, marker="v", linestyle=(0, (3, 1, 1, 1))),
    "mmd-kd": dict(color=RED, marker="<", linestyle=(0, (3, 1, 1, 1, 1, 1))),
    "fecd": dict(color=PURPLE, marker="P", linestyle=(0, (5, 1))),
    "csd": dict(color=BLUE, marker="o", linestyle="-"),
    "joint": dict(color=GREY, marker="D", linestyle=":"),
    "ce+kd": dict(color=WINE, marker="*", linestyle="-"),
}
TERM_STYLE = {
    "ce": dict(color=ORANGE, marker="s"),
    "triplet": dict(color=GREEN, marker="^"),
    "kd": dict(color=SKY, marker="v"),
    "csd": dict(color=BLUE, marker="o"),
    "csd_paper": dict(color=BLUE, marker="*"),
    "mmd": dict(color=PURPLE, marker="D"),
    "fecd": dict(color=RED, marker="P"),
}
# A legend on the right of its axes.
BESIDE: dict[str, Any] = dict(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
# For names that have no style above, in the order in which they come: the three lengths have no
# common divisor, so that many are told apart.
_MORE_COLORS = (RED, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK)
_MORE_MARKERS = ("*", "<", ">", "p", "h", "d", "8", "H", "X")  # none is hollow
_MORE_LINES = ("-", "--", "-.", ":")


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour, marker and line for each of these methods, whoever registered them."""
    return _styles(names, METHOD_STYLE)


def method_title(name: str) -> str:
    """Return what stands in a legend for a method; any other name, or recipe, for itself."""
    return METHODS[name].title if name in METHODS else name.replace("+", " + ")


def term_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a label, colour and marker for each of these loss terms, whoever registered them."""
    styles = _styles(names, TERM_STYLE)
    titles = {name: TERMS[name].title if name in TERMS else name for name in styles}
    return {name: {"label": titles[name], **style} for name, style in styles.items()}


def _styles(names: Iterable[str], known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in known]
    made = {
        name: dict(
            color=_MORE_COLORS[i % len(_MORE_COLORS)],
            marker=_MORE_MARKERS[i % len(_MORE_MARKERS)],
            linestyle=_MORE_LINES[i % len(_MORE_LINES)],
        )
        for i, name in enumerate(unknown)
    }
    return {name: known.get(name) or made[name] for name in names}


def use_style() -> None:
    """Set the one style of all figures."""
    plt.style.use("seaborn-v0_8-whitegrid")  # without seaborn, slow to import
    plt.rcParams.update(
        {
            "font.sans-serif": ["Arial", "DejaVu Sans"],
            "font.size": 14.4,
            **dict.fromkeys(["axes.labelsize", "legend.title_fontsize"], 14.4),
            **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 13.2),
            **dict.fromkeys(["xtick.bottom", "ytick.left"], False),
            **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 6),  # a distance all the same
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PURPLE, SKY, RED]),
            "axes.linewidth": 1.25,
            "grid.linewidth": 1,
            "legend.frameon": True,
            "patch.edgecolor": "white",
            "patch.force_edgecolor": True,
            "figure.dpi": 80,
            "savefig.bbox": "tight",
            "axes.titlesize": 15,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 2.5,
            "lines.markersize": 8,
        }
    )


def method_curves(
    values: dict[str, np.ndarray], ylabel: str, title: str = "", xlabels: Sequence[str] = ()
) -> Figure:
    """One line per method over the stages: mean over seeds, bars of one sample sd.

    ``values`` are ``{method or other name: [seeds, stages]}`` in %; ``xlabels`` one text a stage.
    """
    checks.mapping("values", values, "arrays [seeds, stages] by method")
    values = {name: checks.table(f"values[{name!r}]", runs) for name, runs in values.items()}
    stages = {runs.shape[1] for runs in values.values()}
    if len(stages) > 1:
        raise InputError(f"values have {sorted(stages)} stages: give every method as many")
    checks.text("ylabel", ylabel)
    checks.text("title", title)
    checks.instance("xlabels", xlabels, (str, list, tuple), "one text per stage, or none at all")
    if xlabels:
        checks.names("xlabels", xlabels, *stages, more=False)  # type: ignore[misc]
    figure, axis = plt.subplots(figsize=(7, 4.4))
    _draw_curves(axis, values)
    axis.set(ylabel=ylabel, title=title)
    axis.set_xticks(range(len(xlabels)), xlabels)
    axis.margins(x=0.12)
    too_large = len(values) > 4 or max(map(len, values)) > 20
    axis.legend(title=said_of_bars(values.values()), **(BESIDE if too_large else {}))
    return figure


def said_of_bars(values: Iterable[Sized]) -> str:
    """Say in a legend's title what bars are, and of how many runs."""
    counts = sorted({len(runs) for runs in values})
    runs = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return "one run each" if runs == "1" else f"{runs} runs each, bars: ± one sd"


def _draw_curves(axis: Axes, values: dict[str, np.ndarray]) -> None:
    styles = method_styles(values)
    for place, (name, runs) in enumerate(values.items()):
        # Side by side, or equal means would hide each other's bars.
        aside = 0.03 * (place - (len(values) - 1) / 2)
        axis.errorbar(
            np.arange(runs.shape[1]) + aside,
            runs.mean(axis=0),
            # One seed has no spread, and a bar of length zero would say that there is none.
            yerr=runs.std(axis=0, ddof=1) if len(runs) > 1 else None,
            capsize=5,
            label=method_title(name),
            **styles[name],
        )


def panels_of_rows(
    names: Sequence[str], titles: Sequence[str], xlabel: str, **more: Any
) -> tuple[Figure, Sequence[Axes], Sequence[int]]:
    """Return a figure, its panels side by side, and where each name has its row, the first on top.

    ``more`` is for ``plt.subplots``.
    """
    places = range(len(names))[::-1]
    figure, axes = plt.subplots(1, len(titles), sharey=True, **more)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel=xlabel, ylim=(-0.6, len(names) - 0.4))
    axes[0].set_yticks(places, names)
    return figure, axes, places


def paper_against_ours(table: Table) -> Figure:
    """Table 1 as a picture: per method the paper's value and ours in both galleries.

    Args:
        table: Table 1 of ``comparison.tables``; bars are one sample sd.
    """
    checks.instance("table", table, Table, "one of comparison.tables")
    if not table.published:
        raise InputError(f"table={table.title!r} has no numbers in the paper: give Table 1's")
    names = [row[0].config.method for row in table.rows]
    labels = [get_method(name).title for name in names]
    for i, row in enumerate(table.rows):
        if names.count(names[i]) > 1:  # made by several older codes
            labels[i] += f", {row[0].fingerprint or 'older'}"
    titles = [f"classes {half}" for half in table.halves]
    size = 11, 0.62 * len(names) + 1.9
    figure, axes, places = panels_of_rows(labels, titles, "Recall@1 (%)", figsize=size)
    ours = {
        "own": ("the task's own classes", BLUE, "o", 0.13),
        "seen": ("all classes", ORANGE, "s", -0.13),
    }
    for column, axis in enumerate(axes):
        published = [table.published.get(name, (np.nan,) * 3)[column] for name in names]
        axis.scatter(published, places, marker="|", s=500, linewidths=3, color=BLACK, label="paper")
        for gallery, (label, color, marker, shift) in ours.items():
            for place, row in zip(places, table.rows, strict=True):
                last = [getattr(record.matrix, gallery)[-1, column] for record in row]
                values = 100 * np.array(last)
                axis.errorbar(
                    values.mean(),
                    place + shift,
                    xerr=values.std(ddof=1) if len(values) > 1 else None,
                    fmt=marker,
                    color=color,
                    capsize=4,
                    label=f"ours, gallery: {label}" if place == 0 else None,
                )
    below = -1 / figure.get_figheight()  # as far from the axis, however many rows there are
    axes[1].legend(loc="upper center", bbox_to_anchor=(-0.1, below), ncols=3, frameon=False)
    return figure


def first_task_curves(table: Table) -> Figure:
    """Recall@1 on the first task after every task, as in Figure 3: a line for each row.

    On the left the gallery stays the same; on the right it grows with every task, which lowers the
    line of a network that forgets nothing. Rows of joint training, which has only a last stage, are
    lines at its height. If all rows have some seeds in common, only those are drawn.
    """
    checks.instance("table", table, Table, "one of comparison.tables")
    tasks = table.group.config.tasks
    rows: dict[str, list[Record]] = {}
    for row in table.rows:
        config = row[0].config
        label = config.method if not table.settings and table.name else table.label(config)
        # The longer label: made by other code.
        rows[f"{label}, {row[0].fingerprint or 'older'}" if label in rows else label] = row
    if seeds := set.intersection(*({r.config.seed for r in row} for row in rows.values())):
        rows = {n: [r for r in row if r.config.seed in seeds] for n, row in rows.items()}
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharey=True)
    for axis, (gallery, title) in zip(axes, GALLERIES.items(), strict=True):
        values = {
            label: np.broadcast_to(
                100 * np.array([getattr(record.matrix, gallery)[:, 0] for record in row]),
                (len(row), tasks),
            )
            for label, row in rows.items()
        }
        _draw_curves(axis, values)
        axis.set(title=title, xlabel="after task")
        axis.set_xticks(range(tasks), [str(i + 1) for i in range(tasks)])
        axis.margins(x=0.08)
    axes[0].set_ylabel("Recall@1 on task 1 (%)")
    axes[1].legend(title=said_of_bars(rows.values()), **BESIDE)
    return figure


def term_effects(table: Table, gallery: str) -> Figure:
    """What adding a term to a recipe changes: a point for each seed, and the mean as a stroke.

    The gallery is that of the first two panels; the third is the old gallery.
    """
    found = comparison.term_effects(table, gallery)
    if not found:
        raise InputError(f"table={table.title!r} has no two recipes that differ in one term")
    rows = [(term, recipe) for term, effects in found.items() for recipe in effects]
    names = [f"+ {TERMS[term].title}, to {recipe.replace('+', ' + ')}" for term, recipe in rows]
    titles = {0: "task 1 at the end", 2: "average of the tasks", 3: "old gallery"}
    size = 13, 0.42 * len(rows) + 1.9
    figure, axes, places = panels_of_rows(
        names, [*titles.values()], "change in points", figsize=size
    )
    for column, axis in zip(titles, axes, strict=True):
        axis.axvline(0, color=BLACK, linewidth=1)
        for place, (term, recipe) in zip(places, rows, strict=True):
            values = 100 * np.array(list(found[term][recipe].values()))[:, column]
            style = term_styles([term])[term]
            look = dict(color=style["color"], marker=style["marker"], s=50, alpha=0.6)
            axis.scatter(values, [place] * len(values), **look)
            axis.scatter([values.mean()], [place], marker="|", s=450, linewidths=3, color=BLACK)
    return figure


def paper_figures(groups: Sequence[Group], folder: str | Path) -> list[Path]:
    """Draw every table of ``paper_groups`` into files named after what differs between them.

    A file of another group is never overwritten: the new one then gets a longer name.
    """
    checks.instance("groups", groups, (list, tuple), "what comparison.paper_groups returns")
    for group in groups:
        checks.instance("groups", group, Group, "what comparison.paper_groups returns")
    checks.instance("folder", folder, (str, Path), "a folder")
    folder = make_folder(folder)
    use_style()
    paths = []
    for table in (table for group in groups for table in tables(group)):
        title, drawn = _name(table)
        path = folder / f"{title}.png"
        if path in paths or (path.exists() and _drawn_from(path) != drawn):
            path = folder / f"{title}-{hashlib.sha256(drawn.encode()).hexdigest()[:8]}.png"
        figure = paper_against_ours(table) if table.published else first_task_curves(table)
        about = {"Description": drawn}
        save = partial(figure.savefig, format="png", dpi=100, metadata=about)
        write_atomically(path, save)
        plt.close(figure)
        paths.append(path)
    return paths


def _name(table: Table) -> tuple[str, str]:
    """Return a name for a figure, and a text that no other group's figure has."""
    config, group = table.group.config, table.group
    shared = shared_changes(group.records)
    parts = [table.name or "other", *([] if config.tasks == 2 else [f"{config.tasks}tasks"])]
    parts += [] if config.dataset == "cifar100" else [identity.data_name(config)]
    epochs = f"{config.epochs}epochs"
    parts += [config.preset, f"{group.stop}of{epochs}" if group.stop else epochs, config.precision]
    unsaid = shared.keys() - {"precision", *table.settings}
    parts += [f"{name}={shared[name]}" for name in sorted(unsaid)]
    name = "".join(c if c.isalnum() or c in "-_=." else "_" for c in "-".join(parts))
    return name[:150], f"{name}; {group.key}"


def _drawn_from(path: Path) -> str:
    """Return what ``paper_figures`` wrote into a figure about its records, if it drew it."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Description", ""))
    except (OSError, ValueError, SyntaxError):
        return ""
