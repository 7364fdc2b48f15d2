"""Runs that are stopped on their way, and whether two runs are the same."""

import json

import torch

from csd_lib import files


def stop_after(epochs):
    """What to give as ``on_epoch``: Ctrl-C after so many epochs, the last of which is not saved."""

    def stop(history, student):
        if len(history) == epochs:
            raise KeyboardInterrupt

    return stop


def same_bits(first, second):
    """Whether all weights and statistics of all models of two runs are equal, bit for bit."""
    states = [[model.state_dict() for model in run.models] for run in (first, second)]
    return all(torch.equal(a[n], b[n]) for a, b in zip(*states, strict=True) for n in a)


def outcome(folder):
    """All that a run of two tasks leaves behind, but for the time it took."""
    results = files.read_json(folder / "results.json")
    lines = (folder / "history.jsonl").read_text().splitlines()
    history = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    models = [files.read_tensors(folder / f"model-task{n}.pt") for n in (1, 2)]
    weights = [{name: value.tolist() for name, value in model.items()} for model in models]
    return results["config"], results["matrix"], history, weights
