"""From the records of many runs to one table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from csd_lib import InputError, TrainingError, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.datasets import get_spec
from csd_lib.fingerprint import fingerprint
from csd_lib.methods import METHODS, get_method
from csd_lib.networks import RANDOM
from csd_lib.output import printable
from csd_lib.paper.seeds import GALLERIES, by_seed, difference_rows, mean_and_sd
from csd_lib.paths import runs_folder
from csd_lib.record import Record, read_records
from csd_lib.retrieval import RetrievalMatrix, average, backward_transfer, forgetting

OLDER = (
    "Made by code that computes other numbers than this one, or before records said what theirs "
    "computes:"
)
UNTRIED = "It is not known whether today's code computes what made these: {}"
# What a block of a table has in common; all else is said in its rows.
_BLOCK = ("dataset", "class_order_seed", "tasks", "epochs", "stop_at_epoch")
_WITHOUT = sorted({field.name for field in fields(TrainConfig)} - {*_BLOCK})
_IN_HEADLINE = ("method", "tasks", "epochs", "seed")
_DIFFERENCES = ("task1_after", "last_task", "average", "in_first_gallery")  # as seeds.by_seed
MAX_CHANNELS = 5000  # of the images of a record whose code is tried


@dataclass(frozen=True, eq=False)
class Group:
    """Records that may stand in one table: the newest of each run."""

    records: list[Record]
    note: str  # on the code that made them, as of ``notes_on_code``: "" for today's
    repeated: int = 0  # how many older records of the same runs are left out
    key: str = ""  # a text that no other group has

    @property
    def is_current(self) -> bool:
        """Whether today's code computes what made them."""
        return not self.note

    @property
    def config(self) -> TrainConfig:
        """The first one's config, for what all have in common."""
        return self.records[0].config

    @property
    def stop(self) -> int | None:
        """The epoch at which all stop before their schedule's end, or None."""
        stops = {_stop(record.config) for record in self.records}
        return stops.pop() if len(stops) == 1 else None


def load_runs(folder: str | Path | None = None) -> tuple[list[Record], list[str]]:
    """Read every ``results.json`` under a folder (default: ``runs/`` or ``$CSD_RUNS``).

    Returns:
        The records, the oldest first, and a line for each file that cannot be read. InputError if
        there is no record.
    """
    checks.instance("folder", folder, (str, Path, type(None)), "a folder, or None")
    folder = Path(folder or runs_folder())
    try:
        paths = sorted(folder.rglob("results.json"))
    except OSError as error:
        raise InputError(f"folder={checks.shown(folder)}: {error.strerror}") from error
    records, problems = read_records(paths)
    if not records:
        found = "; ".join(problems[:3]) or "make one with 'python -m csd_lib train'"
        raise InputError(
            f"no finished run under {folder}: {found}, or name another folder with --folder"
        )
    return records, problems


def notes_on_code(records: Sequence[Record]) -> list[str]:
    """Say of each record if today's code does not compute what made it; each recipe is tried once.

    Returns an empty text if it does; ``OLDER``; or why it cannot be tried, with the remedy, as when
    the module of a network of one's own is not imported.
    """
    _check("records", records)
    known: dict[str, tuple[str, str]] = {}  # fingerprint, or why there is none

    def tried(config: TrainConfig, shape: tuple[int, ...]) -> tuple[str, str]:
        try:
            return fingerprint(config, shape[0], min(shape[1:])), ""
        except (InputError, TrainingError) as error:
            return "", UNTRIED.format(" ".join(str(error).split()))

    def note(record: Record) -> str:
        shape = record.image_shape
        if not (record.fingerprint and record.data and shape) or shape[0] > MAX_CHANNELS:
            return OLDER
        recipe = json.dumps([identity.key(record.config, "seed", "batch_size"), shape])
        if recipe not in known:
            known[recipe] = tried(record.config, shape)
        today, why_not = known[recipe]
        return why_not or ("" if today == record.fingerprint else OLDER)

    # A minute the first time, and nothing is printed before: a bar, in a terminal only.
    bar = tqdm(records, "trying today's code", delay=3, leave=False, disable=None)
    return [note(record) for record in bar]


def grouped(records: Sequence[Record], *without: str) -> list[Group]:
    """Group records that differ in settings named in ``without`` only; current ones come first.

    Machines never matter, but images and presets do. Of several records of one run, made by code
    that computes the same, the newest counts.
    """
    groups: dict[tuple[Any, ...], dict[tuple[str, str], Record]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    notes = notes_on_code(records)
    newest_last = sorted(zip(records, notes, strict=True), key=lambda pair: pair[0].date)
    for record, note in newest_last:
        shared = json.dumps([_settings(record.config, *without), record.data], sort_keys=True)
        key = (note, record.config.preset, shared)
        counts[key] = counts.get(key, 0) + 1
        groups.setdefault(key, {})[record.key(), record.fingerprint] = record
    return [
        Group(list(found.values()), key[0], counts[key] - len(found), json.dumps(key))
        # First without a note, then what cannot be tried here, then older code.
        for key, found in sorted(groups.items(), key=lambda item: (item[0][0] == OLDER, item[0][0]))
    ]


def _settings(config: TrainConfig, *without: str) -> dict[str, Any]:
    """Return ``identity.settings``, in which a stop that stops nothing is none."""
    found = identity.settings(config, *without)
    return found | ({"stop_at_epoch": _stop(config)} if "stop_at_epoch" in found else {})


def _stop(config: TrainConfig) -> int | None:
    """Return the epoch at which tasks stop before their schedule's end, or None."""
    whole = (config.epochs_to_run(t) == config.schedule_length(t) for t in range(config.tasks))
    return None if all(whole) else config.stop_at_epoch


def variants(records: Sequence[Record]) -> list[list[Record]]:
    """Put the runs of one recipe, which differ in their seeds, together: one list for each row."""
    _check("records", records)
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        rows.setdefault((record.key("seed"), record.fingerprint), []).append(record)
    named = list(METHODS)

    def place(row: list[Record]) -> tuple[Any, ...]:
        method = row[0].config.method
        place = named.index(method) if method in METHODS else len(named)
        changed = [  # numbers before anything else
            (name, value if isinstance(value, int | float) else math.inf, str(value))
            for name, value in changed_settings(row[0].config).items()
        ]
        return place, method, changed

    return sorted(rows.values(), key=place)


def plain_runs(
    records: Sequence[Record], dataset: str, preset: str
) -> dict[str, dict[int, Record]]:
    """Return the runs of two tasks that change only a preset's precision, by method and seed.

    All are of one precision: that of the most runs, and of equally many that of the newest. Of a
    method that several codes have run, only the newest code's runs count.
    """
    _check("records", records)
    for name, value in (("dataset", dataset), ("preset", preset)):
        checks.text(name, value)
    by_precision: dict[str, list[Record]] = {}
    for record in records:
        config = record.config
        if (identity.data_name(config), config.preset) != (dataset, preset):
            continue
        plain = TrainConfig(dataset=config.dataset, preset=preset, method=config.method)
        found, usual = (identity.key(each, "seed", "precision") for each in (config, plain))
        if found == usual:
            by_precision.setdefault(config.precision, []).append(record)
    chosen = max(by_precision.values(), key=_how_many_and_new, default=[])
    rows = variants(chosen)
    newest_last = sorted(rows, key=lambda row: (max(r.date for r in row), len(row)))
    newest = {row[0].config.method: row for row in newest_last}
    order = dict.fromkeys(row[0].config.method for row in rows)
    return {name: {r.config.seed: r for r in newest[name]} for name in order}


def _how_many_and_new(records: Sequence[Record]) -> tuple[int, str]:
    """Return how many runs these are, each counted once, and the newest one's date."""
    runs = {(record.config.method, record.config.seed) for record in records}
    return len(runs), max(record.date for record in records)


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that differ from the preset's, without those that a headline has."""
    checks.instance("config", config, TrainConfig, "a TrainConfig")
    headline = {name: getattr(config, name) for name in _IN_HEADLINE}
    preset = TrainConfig(dataset=config.dataset, preset=config.preset, **headline)
    usual = identity.settings(preset) | {"later_epochs": preset.schedule_length(1)}
    return {name: value for name, value in _read(config).items() if value != usual[name]}


def _read(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a run reads, also those of its length that are as usual.

    ``identity.key`` leaves these out; but a run that stops nowhere was not stopped, and one whose
    later tasks are as long as the first has that many epochs of them.
    """
    found = identity.key(config, "seed")
    found.setdefault("stop_at_epoch", None)
    if config.learns_later():
        found.setdefault("later_epochs", config.epochs)
    return found


def describe(config: TrainConfig, without: Iterable[str] = ()) -> str:
    """Name what a row is: the method, and what is changed from the preset."""
    named = {n: value for n, value in changed_settings(config).items() if n not in set(without)}
    return ", ".join([get_method(config.method).title, *_said(named)])


def _said(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as name=value, 10.0 as 10 and a product of rates without its last bits."""
    return [f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in settings.items()]


def table_rows(
    rows: Sequence[Sequence[Record]],
    gallery: str,
    columns: Callable[[TrainConfig], dict[str, str]] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one block: Recall@1 on the first task after each task, and at the end.

    Args:
        rows: of ``variants``, all of one number of tasks.
        gallery: ``"own"`` or ``"seen"``.
        columns: what stands on the left of a row; default: ``describe``.
    """
    checks.one_of("gallery", gallery, GALLERIES)
    checks.sequence("rows", rows, (list, tuple), "one or more lists of records")
    columns = columns or (lambda config: {"method": describe(config)})
    table = []
    for row in rows:
        _check("rows", row)
        tasks = row[0].config.tasks
        matrices = [getattr(record.matrix, gallery) for record in row]
        after = ["–"] * (tasks - len(matrices[0]))  # joint training has only a last stage
        for stage in range(len(matrices[0])):
            after.append(mean_and_sd([float(matrix[stage, 0]) for matrix in matrices]))
        table.append(
            {
                **columns(row[0].config),
                "n": str(len(row)),
                **{f"after task {i + 1}": text for i, text in enumerate(after)},
                "last task": mean_and_sd([float(matrix[-1, -1]) for matrix in matrices]),
                "average": mean_and_sd([average(matrix) for matrix in matrices]),
                "forgetting": mean_and_sd([forgetting(matrix) for matrix in matrices]),
                **(_old_gallery(row) if gallery == "own" else {}),
                "fingerprint": row[0].fingerprint or "–",
            }
        )
    return list(table[0]), [list(cells.values()) for cells in table]


def average_compatibility(old_gallery: np.ndarray) -> float:
    """Share of pairs of models, an old and a newer one, in which the newer one is compatible.

    It is compatible if it searches the old one's gallery better than the old one itself did (Shen
    et al., CVPR 2020); averaged over all pairs as in Biondi et al. (TOMM 2023). Equal is not better
    here; code of that group exists with and without ties. NaN for a single model.
    """
    matrix = checks.square("old_gallery", old_gallery)
    pairs = [(i, j) for i in range(len(matrix)) for j in range(i)]
    return float(np.mean([matrix[i, j] > matrix[j, j] for i, j in pairs])) if pairs else math.nan


def average_multi_model(old_gallery: np.ndarray) -> float:
    """Mean Recall@1 of all models on their own gallery and on all older ones (Biondi et al.)."""
    matrix = checks.square("old_gallery", old_gallery)
    return float(np.mean(matrix[np.tril_indices(len(matrix))]))


def _old_gallery(row: Sequence[Record]) -> dict[str, str]:
    """Columns on searches in galleries that older models have indexed."""
    tables = [t for record in row if (t := record.matrix.old_gallery) is not None and len(t) > 1]
    found = {"old gallery": mean_and_sd([record.matrix.in_first_gallery() for record in row])}
    if row[0].config.tasks > 2:
        for name, of in {"AC": average_compatibility, "AA": average_multi_model}.items():
            found[name] = mean_and_sd(list(map(of, tables))) if len(tables) == len(row) else "–"
    return found


def _inputs(record: Record) -> str:
    """Say which images, and which weights the network began with."""
    config = record.config
    others = record.data and not record.data.startswith(get_spec(config.dataset).data)
    named = f"{config.dataset} (other images than this kit's)" if others else config.dataset
    size = f" at {config.image_size} pixels" if config.image_size else ""
    weights = f", weights {config.weights}" if config.weights != RANDOM else ""
    model = f", going on from {config.init_from}" if config.init_from else ""
    return f"{named}{size}{weights}{model}"


def headline(group: Group) -> list[str]:
    """Say all that one must know to believe a group of records."""
    records, config = group.records, group.config
    shared = shared_changes(records)
    histories = {record: record.timed_epochs() for record in records}
    # A first task that several methods share is in each one's history, and counts once.
    seconds = {
        (record.config.seed, str(epoch.get("task")), str(epoch.get("epoch")), epoch["seconds"])
        for record in records
        for epoch in histories[record]
    }
    hours = sum(found[-1] for found in seconds)
    hours += sum(record.training_seconds for record in records if not histories[record])
    facts = [
        f"{_inputs(records[0])}, {config.tasks} tasks, preset {config.preset}: {_length(group)}, "
        f"seeds {_listed(record.config.seed for record in records)}",
        _listed(record.device for record in records) + _threads(records),
        _listed(record.config.precision for record in records),
        f"torch {_listed(record.versions.get('torch', '?') for record in records)}",
        _listed(record.date for record in records),
        f"{hours / 3600:.1f} hours, at most {max(r.peak_memory_mb for r in records)} MB",
    ]
    lines = [", ".join(facts)]
    if shared:
        lines.append(f"changed from the preset: {', '.join(_said(shared))}")
    if group.repeated:
        lines.append(f"left out: {group.repeated} older records of the same runs")
    if config.preset == "class":
        line = "This is a short schedule"
        if {record.config.head_init for record in records} == {"class_means"}:
            line += ", and new head rows start from class means, not at random as in the paper"
        lines.append(f"{line}: the gaps show how far it stays behind the full protocol.")
    return lines


def _threads(records: Sequence[Record]) -> str:
    """Name the numbers of threads on a CPU, which change single runs a little."""
    counts = {r.threads for r in records if r.device.startswith("cpu") and r.threads}
    return f" (threads: {_listed(counts)})" if counts else ""


def _length(group: Group) -> str:
    """Say how long the tasks of all records are, and whether that is all of their schedule."""
    config = group.config
    text = f"{config.epochs} epochs a task"
    learning = (record.config for record in group.records if record.config.learns_later())
    later = sorted({config.schedule_length(1) for config in learning})
    if later and later != [config.epochs]:
        text = f"{config.epochs} epochs, then {' or '.join(map(str, later))} a task"
    if group.stop:
        text += f", of which only the first {group.stop} were run: a prefix"
    return text


def shared_changes(records: Sequence[Record]) -> dict[str, Any]:
    """Return the changed settings that all records have alike."""
    first, *rest = [changed_settings(row[0].config) for row in variants(records)]
    return {n: v for n, v in first.items() if all(n in other and other[n] == v for other in rest)}


def render(
    records: Sequence[Record], markdown: bool = False, against: Mapping[str, Any] | None = None
) -> str:
    """Render records as text for a terminal, or as Markdown: a row for each method and setting.

    Args:
        records: of one or more kinds; each kind has its own tables.
        markdown: write Markdown.
        against: settings, as ``{"method": "csd"}``. Each row is also compared, seed by seed, with
            the row of its table that has these, and is otherwise the same in all that both read.

    Raises:
        InputError: for settings that rows of one table do not differ in.
    """
    checks.flag("markdown", markdown)
    against = _comparable(against)
    lines: list[str] = []
    note = ""
    for group in grouped(records, *_WITHOUT):
        if group.note != note:
            note = group.note
            lines += [note, ""]
        shared = shared_changes(group.records)
        lines += ["\n\n".join(headline(group)), ""]
        rows = variants(group.records)
        names = lambda config, s=shared: {"method": describe(config, s)}  # noqa: E731
        lines += render_rows(rows, markdown, names)
        if against and group.is_current:
            lines += _differences(rows, against, markdown, names)
        elif against:
            lines += ["not compared: see above", ""]
    return printable("\n".join(lines))


def _comparable(against: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings in which rows of one table can differ."""
    checks.instance("against", against, (Mapping, type(None)), "a dictionary of settings, or None")
    checks.setting_names(TrainConfig, against or (), "against: ")
    get_method((against or {}).get("method", "csd"))  # refuses a misspelled one
    parts = {part.name: part.metadata["decides"] for part in fields(TrainConfig)}
    for name in against or ():
        if name in (*_BLOCK, "preset", "seed") or parts[name] in ("data", "machine"):
            raise InputError(f"against: no two rows of a table differ in {name}: leave it out")
    # A config has tuples where JSON has lists.
    return {n: tuple(v) if isinstance(v, list) else v for n, v in (against or {}).items()}


def _differences(
    rows: Sequence[Sequence[Record]],
    against: Mapping[str, Any],
    markdown: bool,
    columns: Callable[[TrainConfig], dict[str, str]],
) -> list[str]:
    """Return the lines of two tables: each row minus the one that only has other settings."""
    named = ", ".join(_said(against))
    pairs, lines = [], []
    for row, others in _fitting(rows, against):
        if len(others) == 1:
            left = columns(row[0].config) | {"minus": columns(others[0][0].config)["method"]}
            pairs.append((left, row, others[0]))
        else:
            titles = "; ".join(describe(other[0].config) for other in others)
            lines += [f"{describe(row[0].config)} has several to compare with: {titles}", ""]
    for gallery, title in GALLERIES.items():
        found = difference_rows(pairs, gallery)
        if not found[1]:
            return [*lines, f"no two runs of one seed that differ in this alone: {named}", ""]
        lines += titled(f"Differences, {title}; in points", found, markdown)
    return lines


def _fitting(
    rows: Sequence[Sequence[Record]], against: Mapping[str, Any]
) -> list[tuple[Sequence[Record], list[Sequence[Record]]]]:
    """Return each row with those that have these settings and are otherwise the same, if any."""
    found = [(row, [r for r in rows if _differ_only_in(against, row[0], r[0])]) for row in rows]
    return [(row, others) for row, others in found if others]


def _differ_only_in(against: Mapping[str, Any], record: Record, other: Record) -> bool:
    """Say whether another record has these settings, and shares all others that both runs read.

    What a run does not read is not written down, so it cannot be asked what it was.
    """
    own, others = _read(record.config), _read(other.config)
    wanted = dict(against)
    if wanted.get("later_epochs", 0) is None:
        wanted["later_epochs"] = other.config.epochs
    has = all(others[name] == wanted[name] for name in wanted if name in others)
    differing = {name for name in own.keys() & others.keys() if own[name] != others[name]}
    return has and bool(differing) and differing <= against.keys()


def render_rows(
    rows: Sequence[Sequence[Record]],
    markdown: bool,
    columns: Callable[[TrainConfig], dict[str, str]],
) -> list[str]:
    """Return the lines of two tables, one for each gallery."""
    lines = []
    for gallery, title in GALLERIES.items():
        about = f"Recall@1 in % on task 1 after each task, and on the last one at the end, {title}"
        lines += titled(about, table_rows(rows, gallery, columns), markdown)
    return lines


def render_matrix(matrix: RetrievalMatrix) -> str:
    """Render one run's matrices in %: a row after each task, a column for each task's images."""
    checks.instance("matrix", matrix, RetrievalMatrix, "a RetrievalMatrix")
    blocks = []
    titles = {
        **{name: f"Recall@1, {title}" for name, title in GALLERIES.items()},
        "accuracy": "Classification accuracy over all classes seen so far",
    }
    for name, title in titles.items():
        values = getattr(matrix, name)
        stages, tasks = values.shape
        header = ["", *[f"task {j + 1}" for j in range(tasks)]]
        rows = [
            [f"after task {tasks - stages + i + 1}", *[mean_and_sd([v]) for v in values[i]]]
            for i in range(stages)
        ]
        summary = (
            f"average {mean_and_sd([average(values)])}, forgetting "
            f"{mean_and_sd([forgetting(values)])}, backward transfer "
            f"{mean_and_sd([backward_transfer(values)])}"
        )
        blocks.append("\n".join([f"{title} (%)", *format_table(header, rows, False), summary]))
    if matrix.old_gallery is not None and len(matrix.old_gallery) > 1:
        blocks.append(_render_old_gallery(matrix.old_gallery))
    return "\n\n".join(blocks)


def _render_old_gallery(values: np.ndarray) -> str:
    header = ["", *[f"model {j + 1}" for j in range(len(values))]]
    rows = [[f"by model {i + 1}", *[mean_and_sd([v]) for v in row]] for i, row in enumerate(values)]
    summary = (
        f"average compatibility {mean_and_sd([average_compatibility(values)])}, average "
        f"multi-model recall {mean_and_sd([average_multi_model(values)])}"
    )
    title = "Recall@1, searched by one model, gallery indexed by it or an older one (%)"
    return "\n".join([title, *format_table(header, rows, False), summary])


def format_table(header: list[str], rows: list[list[str]], markdown: bool) -> list[str]:
    """Return the lines of a table, in Markdown or aligned for a terminal."""
    checks.names("header", header, 1)
    checks.instance("rows", rows, list, "a list of rows, which may be empty")
    for row in rows:
        checks.names("rows", row, len(header), more=False)
    checks.flag("markdown", markdown)
    if markdown:
        rule = ["---"] + ["---:"] * (len(header) - 1)
        return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
    widths = [max(len(cells[i]) for cells in (header, *rows)) for i in range(len(header))]
    lines = []
    for cells in (header, *rows):
        first, *rest = cells
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def titled(title: str, table: tuple[list[str], list[list[str]]], markdown: bool) -> list[str]:
    """Return a title and, below it, the lines of a table of header and rows; none without rows."""
    return [title, "", *format_table(*table, markdown), ""] if table[1] else []


def as_objects(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one flat dictionary for each record, for programs: every setting and every number."""
    objects = []
    for record, note in zip(records, notes_on_code(records), strict=True):
        matrices = {n: values for n, values in vars(record.matrix).items() if values is not None}
        found = asdict(record.config)
        is_current = {"": True, OLDER: False}.get(note)  # else it is not known
        found |= {"fingerprint": record.fingerprint, "is_current": is_current, "data": record.data}
        found |= {"date": record.date, "trained_on": record.device, "versions": record.versions}
        found |= {"threads": record.threads, "peak_memory_mb": record.peak_memory_mb}
        found |= {"training_seconds": record.training_seconds, "folder": str(record.folder)}
        for name, values in matrices.items():
            found[name] = [[_finite(v) for v in row] for row in values.tolist()]
            if name == "old_gallery":
                found["average_compatibility"] = average_compatibility(values)
                found["average_multi_model"] = average_multi_model(values)
                continue
            has_stages = len(values) > 1  # joint training has one
            summary = {
                "average": average(values),
                "forgetting": forgetting(values),
                "task1_before": values[0, 0] if has_stages else math.nan,
                "task1_after": values[-1, 0],
                "last_task": values[-1, -1],
            }
            found |= {f"{what}_{name}": float(value) for what, value in summary.items()}
        found["in_first_gallery"] = record.matrix.in_first_gallery()
        objects.append({name: _finite(value) for name, value in found.items()})
    return objects


def differences(
    records: Sequence[Record], against: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return what ``render`` compares, for programs: an object for each two runs of one seed.

    There is one for each gallery. Differences are shares, named as in ``as_objects``.
    """
    against, objects = _comparable(against), []
    for group in grouped(records, *_WITHOUT):
        rows = variants(group.records) if group.is_current else []
        for row, others in _fitting(rows, against):
            for other, gallery in itertools.product(others, GALLERIES):
                about = {name: getattr(group.config, name) for name in ("preset", *_BLOCK)}
                about |= {"run": describe(row[0].config), "minus": describe(other[0].config)}
                for seed, values in by_seed(row, other, gallery).items():
                    found = dict(zip(_DIFFERENCES, map(_finite, values), strict=True))
                    objects.append({**about, "gallery": gallery, "seed": seed, **found})
    if not objects:
        raise InputError(f"against={against}: no two runs of one seed differ in this alone")
    return objects


def render_json(records: Sequence[Record], against: Mapping[str, Any] | None = None) -> str:
    """Write records as a JSON list of objects; with ``against`` their ``differences`` instead."""
    return json.dumps(_objects(records, against), indent=1)


def render_csv(records: Sequence[Record], against: Mapping[str, Any] | None = None) -> str:
    """Write the same as CSV, one line each; matrices and other lists as JSON in one cell."""
    text = io.StringIO()
    objects = _objects(records, against)
    columns = dict.fromkeys(name for found in objects for name in found)  # older ones lack some
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for found in objects:
        cells = {
            name: json.dumps(v) if isinstance(v, list | tuple | dict) else v
            for name, v in found.items()
        }
        writer.writerow(cells)
    return printable(text.getvalue()).rstrip("\n")


def _objects(records: Sequence[Record], against: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return differences(records, against) if _comparable(against) else as_objects(records)


def _finite(value: Any) -> Any:
    """Return None for what JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listed(values: Iterable[Any]) -> str:
    """Name different values in order; of more than ten the first and the last."""
    different = sorted(set(values))
    if len(different) > 10:
        return f"{different[0]} to {different[-1]} ({len(different)} of them)"
    return ", ".join(map(str, different))


def _check(name: str, records: Any) -> None:
    if not isinstance(records, list | tuple) or not all(isinstance(r, Record) for r in records):
        raise InputError(f"{name}={checks.shown(records)}: give a list of records")
