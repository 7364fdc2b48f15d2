"""Figures of records, and the one style of all figures: colour-blind safe, with markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from csd_lib import InputError, checks
from csd_lib.files import make_folder
from csd_lib.methods import METHODS, get_method
from csd_lib.paper.comparison import paper_groups
from csd_lib.paper.published import TABLE_1
from csd_lib.paper.report import GALLERIES

# Okabe and Ito's colours, which readers with any common colour blindness can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
GREY, BLACK = "#8C8C8C", "#000000"
METHOD_STYLE = {
    "initial": dict(color=BLACK, marker="X", linestyle=":"),
    "fine-tuning": dict(color=ORANGE, marker="s", linestyle="--"),
    "lwf": dict(color=SKY, marker="^", linestyle="-."),
    "mmd": dict(color=GREEN, marker="v", linestyle=(0, (3, 1, 1, 1))),
    "fecd": dict(color=PURPLE, marker="P", linestyle=(0, (5, 1))),
    "csd": dict(color=BLUE, marker="o", linestyle="-"),
    "joint": dict(color=GREY, marker="D", linestyle=":"),
}
TERM_STYLE = {
    "ce": dict(label="cross entropy", color=ORANGE, marker="s"),
    "triplet": dict(label="triplet", color=GREEN, marker="^"),
    "kd": dict(label="KD", color=SKY, marker="v"),
    "csd": dict(label="CSD", color=BLUE, marker="o"),
    "csd_paper": dict(label="CSD, Eq. 8", color=BLUE, marker="*"),
    "mmd": dict(label="MMD", color=PURPLE, marker="D"),
    "fecd": dict(label="FECD", color=RED, marker="P"),
}


def use_style() -> None:
    """Set the one style of all figures."""
    sns.set_theme(style="whitegrid", context="notebook", font_scale=1.2)
    plt.rcParams.update(
        {
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

    Args:
        values: ``{method: [seeds, stages]}`` in %.
        xlabels: one text per stage.
    """
    checks.mapping("values", values, "arrays [seeds, stages] by method")
    for name in values:
        checks.one_of("a method in values", name, METHOD_STYLE)
    values = {name: checks.table(f"values[{name!r}]", runs) for name, runs in values.items()}
    stages = {runs.shape[1] for runs in values.values()}
    if len(stages) > 1:
        raise InputError(f"values have {sorted(stages)} stages: give every method as many")
    checks.text("ylabel", ylabel)
    checks.text("title", title)
    checks.instance("xlabels", xlabels, (str, list, tuple), "one text per stage, or none at all")
    if xlabels:
        checks.names("xlabels", xlabels, *stages, more=False)
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for name, runs in values.items():
        sd = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1])
        axis.errorbar(
            range(runs.shape[1]),
            runs.mean(axis=0),
            yerr=sd,
            capsize=5,
            label=get_method(name).title,
            **METHOD_STYLE[name],
        )
    axis.set(ylabel=ylabel, title=title)
    axis.set_xticks(range(len(xlabels)), xlabels)
    axis.margins(x=0.12)
    axis.legend()
    return figure


def paper_against_ours(group: Sequence[dict[str, Any]]) -> Figure:
    """Table 1 as a picture: per method the paper's value and ours in both galleries.

    Args:
        group: records of one preset, from ``comparison.paper_groups``; bars are one sample sd.
    """
    checks.records("group", group, ["matrix"], galleries=GALLERIES)
    names = [m for m in TABLE_1 if any(r["config"]["method"] == m for r in group)]
    if not names or any(len(r["matrix"]["own"][-1]) != 2 for r in group):
        raise InputError("group holds no run of Table 1, or one of other than 2 tasks")
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.62 * len(names) + 1.9), sharey=True)
    places = np.arange(len(names))[::-1]
    ours = {
        "own": ("the task's own classes", BLUE, "o", 0.13),
        "seen": ("all classes", ORANGE, "s", -0.13),
    }
    for column, axis in enumerate(axes):
        published = [TABLE_1[name][column] for name in names]
        axis.scatter(published, places, marker="|", s=500, linewidths=3, color=BLACK, label="paper")
        for gallery, (label, color, marker, shift) in ours.items():
            for place, name in zip(places, names, strict=True):
                runs = [r["matrix"][gallery][-1] for r in group if r["config"]["method"] == name]
                values = 100 * np.array(runs)[:, column]
                axis.errorbar(
                    values.mean(),
                    place + shift,
                    xerr=values.std(ddof=1) if len(values) > 1 else None,
                    fmt=marker,
                    color=color,
                    capsize=4,
                    label=f"ours, gallery: {label}" if place == 0 else None,
                )
        axis.set_title(f"classes {('1-50', '51-100')[column]}")
        axis.set(xlabel="Recall@1 (%)", ylim=(-0.6, len(names) - 0.4))
    axes[0].set_yticks(places, [METHODS[name].title for name in names])
    axes[1].legend(loc="upper center", bbox_to_anchor=(-0.1, -0.22), ncols=3, frameon=False)
    return figure


def first_task_curves(records: Sequence[dict[str, Any]], gallery: str, tasks: int) -> Figure:
    """Figure 3: Recall@1 on the first task after every task, one line per method."""
    checks.one_of("gallery", gallery, GALLERIES)
    checks.records("records", records, ["matrix"], galleries=[gallery])
    checks.whole("tasks", tasks, 1)
    if all(len(r["matrix"][gallery]) != tasks for r in records):
        raise InputError(f"tasks={tasks}: there is no record with a matrix of so many rows")
    names = [m for m in METHODS if any(r["config"]["method"] == m for r in records)]
    values = {
        name: 100
        * np.array(
            [
                np.array(r["matrix"][gallery])[:, 0]
                for r in records
                if r["config"]["method"] == name and len(r["matrix"][gallery]) == tasks
            ]
        )
        for name in names
    }
    figure = method_curves(
        {name: runs for name, runs in values.items() if len(runs)},
        "Recall@1 on task 1 (%)",
        f"{tasks} tasks",
        [str(i + 1) for i in range(tasks)],
    )
    figure.axes[0].set_xlabel("after task")
    return figure


def paper_figures(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw every figure that the records suffice for, into files named after preset and gallery."""
    checks.records("records", records, ["matrix"], ("preset", "epochs", "precision"), GALLERIES)
    checks.instance("folder", folder, (str, Path), "a folder")
    folder = make_folder(folder)
    use_style()
    figures = {f"table1-{_name(g)}": paper_against_ours(g) for g in paper_groups(records)}
    for tasks in (5, 10):
        for group in paper_groups(records, tasks):
            for gallery in GALLERIES:
                name = f"figure3-{tasks}tasks-{gallery}-{_name(group)}"
                figures[name] = first_task_curves(group, gallery, tasks)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=100)
        plt.close(figure)
    return [folder / f"{name}.png" for name in figures]


def _name(group: Sequence[dict[str, Any]]) -> str:
    config = group[0]["config"]
    return f"{config['preset']}-{config['epochs']}epochs-{config['precision']}"
