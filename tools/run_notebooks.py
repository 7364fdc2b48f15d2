"""Run the ordered notebooks, write each as an HTML page under build/, print the table of runs.

    python tools/run_notebooks.py            # what `make run` does
    python tools/run_notebooks.py --all --write    # also the solved exercises; store the outputs in
                                                   # notebooks/ (part of make notebooks)

Every run starts from an empty build/runs, so the pages show what the code does now. A page can be
read without a network: images are inside it and formulas are MathML.
"""

from __future__ import annotations

import argparse
import datetime
import html
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import torch
from jinja2 import DictLoader
from latex2mathml.converter import convert as latex_to_mathml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from csd_lib.course import smoke_fingerprint, source_hash
from csd_lib.paper.report import grouped, load_runs, render
from csd_lib.paths import runs_folder, variable

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("GLOSSARY", "RELATED_WORK", "CAPSTONE")  # that the notebooks link to

# nbconvert's "lab" page, but with our alt texts (the template drops them, and readers who cannot
# see a figure would be told that there is no description), and without scripts from elsewhere.
TEMPLATE = """
{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock html_head_js %}
{% block html_head_js_mathjax %}{% endblock html_head_js_mathjax %}
{% block html_head_js_mermaidjs %}{% endblock html_head_js_mermaidjs %}
{% block html_head_css %}
{{ super() }}
<style>
.jp-RenderedMarkdown pre { font-family: monospace; background: #f7f7f7; padding: 8px; }
math { font-size: 118%; }
</style>
{% endblock html_head_css %}
{% block data_png %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ output.metadata.get('image/png', {}).get('alt', '') | escape }}">
</div>
{% endblock data_png %}
"""


def notebook_paths(names: list[str], solved: bool) -> list[Path]:
    """Return the notebooks in their order, or those whose names begin with one of `names`.

    Args:
        names: for example ``03``, or ``solutions/03``.
        solved: take the solved exercises, too, if no names are given.
    """
    folder = ROOT / "notebooks"
    chapters, solutions = sorted(folder.glob("0*.ipynb")), sorted(folder.glob("solutions/0*.ipynb"))
    if not names:
        return chapters + (solutions if solved else [])
    paths = {path.relative_to(folder).as_posix(): path for path in chapters + solutions}
    chosen = [path for name, path in paths.items() if name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"error: no notebook begins with {names}; there are {list(paths)}")
    return chosen


def execute(path: Path) -> tuple[NotebookNode, float]:
    """Run one notebook in a fresh kernel; return it with its outputs, and the seconds it took."""
    started = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # or every kernel warns about local sockets
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps, different in every run
        if "outputs" in cell:  # a page would show a finished bar as it began
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output)]
    notebook.metadata.pop("widgets", None)
    # The kernel's exact version differs from machine to machine and says nothing here.
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook, time.monotonic() - started


def _is_progress_bar(output: NotebookNode) -> bool:
    return re.match(r"\s*0%\|", output.get("data", {}).get("text/plain", "")) is not None


def with_mathml(notebook: NotebookNode) -> NotebookNode:
    """Return a copy whose Markdown formulas are MathML, which browsers draw without a network."""
    notebook = nbformat.from_dict(notebook)
    formula = re.compile(r"\$\$(.+?)\$\$|(?<![\w$])\$([^$\n]+?)\$(?!\d)", re.DOTALL)

    def replace(match: re.Match[str]) -> str:
        display = match.group(1) is not None
        source = " ".join((match.group(1) or match.group(2)).split())
        return latex_to_mathml(source, display="block" if display else "inline")

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"(`[^`]*`)", cell.source)  # leave code alone
            cell.source = "".join(
                p if p.startswith("`") else formula.sub(replace, p) for p in parts
            )
    return notebook


def write_page(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook as one self-contained HTML page."""
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})], template_file="page.html.j2"
    )
    title = next(c.source.splitlines()[0].lstrip("# ") for c in notebook.cells)
    page, _ = exporter.from_notebook_node(
        with_mathml(notebook), resources={"metadata": {"name": html.escape(title)}}
    )
    page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)
    page = re.sub(r'href="([A-Z_]+)\.md"', r'href="\1.html"', page)
    page = page.replace('href="exercises/', 'href="../notebooks/exercises/')
    path.write_text(page, encoding="utf-8")


def main() -> None:
    """Run the notebooks, two at a time, with a line for each that has ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only notebooks that begin so, e.g. 03")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder for the pages")
    parser.add_argument("--write", action="store_true", help="store the outputs in notebooks/")
    parser.add_argument("--all", action="store_true", help="also the solved exercises")
    arguments = parser.parse_args()
    paths = notebook_paths(arguments.names, solved=arguments.all)
    build = arguments.build.resolve()
    if build == ROOT:  # whose runs/ would be emptied
        parser.error(f"--build {arguments.build} is the kit itself: give another folder")

    mode = variable("CSD_MODE") or "smoke"
    os.environ["CSD_MODE"] = mode
    os.environ["CSD_WIDGETS"] = "0"  # on a page without a kernel a control is an empty box
    if mode == "smoke":  # hours of training in other modes are kept
        shutil.rmtree(build / "runs", ignore_errors=True)
        os.environ["CSD_RUNS"] = str(build / "runs")
    if arguments.write:  # CIFAR-100's photographs may not be passed on: it does not find them
        os.environ["CSD_DATA"] = str(build / "no-photographs")
    build.mkdir(parents=True, exist_ok=True)
    failed = []
    # What two chapters need is trained once, because one waits for the other. The numbers in the
    # text are those of a chapter that has all cores to itself.
    at_once = 2 if mode == "smoke" and not arguments.write else 1
    if at_once > 1:
        print("Two notebooks at a time, each with half of the cores.", flush=True)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    pool = ThreadPoolExecutor(at_once)
    jobs = {pool.submit(execute, path): path for path in paths}
    for number, job in enumerate(as_completed(jobs), start=1):
        path = jobs[job]
        progress = f"[{number}/{len(paths)}] {path.name} ..."
        try:
            notebook, seconds = job.result()
        except (CellExecutionError, DeadKernelError) as error:
            print(progress, "FAILED", flush=True)
            print(error, file=sys.stderr)
            failed.append(path.name)
            continue
        page = build / path.relative_to(ROOT / "notebooks").with_suffix(".html")
        page.parent.mkdir(exist_ok=True)
        write_page(notebook, page)
        if arguments.write:
            notebook.metadata["csd"] = {
                "mode": mode,
                "fingerprint": smoke_fingerprint(),
                "source": source_hash(notebook),
                "torch": torch.__version__,
                "date": datetime.date.today().isoformat(),
            }
            nbformat.write(notebook, path)
        print(progress, f"{seconds:.0f} s", flush=True)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")
    for name in PAGES:
        text = (ROOT / "notebooks" / f"{name}.md").read_text("utf-8")
        write_page(new_notebook(cells=[new_markdown_cell(text)]), build / f"{name}.html")
    if any(runs_folder().glob("*/results.json")):
        # The setting with the most runs is the one that the notebooks share.
        records, _ = load_runs()
        groups = grouped(records, "method", "seed")
        print("\n" + render(max((group.records for group in groups), key=len)))
    print(f"The pages are in {build}; begin with {paths[0].stem}.html.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # kernels end with this process; the threads would wait for them
        os._exit(130)
