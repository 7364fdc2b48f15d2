"""--log: every epoch once, in order, also after a kill; a missing tool is named."""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest
from typed import csd

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.integrations.loggers import epoch_logger

CONFIG = TrainConfig(device="cpu", epochs=2)


@pytest.fixture(params=["wandb", "trackio"])
def tool(request, monkeypatch):
    """A stand-in of a tool, with what it was called with."""
    module = ModuleType(request.param)
    module.calls = []

    def note(called, /, *arguments, **more):
        module.calls.append((called, *arguments, more))

    for name in ("init", "log", "finish"):
        setattr(module, name, partial(note, name))
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_every_epoch_is_sent_once_with_the_config(tool):
    with epoch_logger(tool.__name__, CONFIG) as on_epoch:
        history = [{"ce": 3.0}, {"ce": 2.0}]  # a run that goes on after its second epoch
        on_epoch(history, None)
        on_epoch([*history, {"ce": 1.0}], None)
    (start, begun), *sent, (end, _) = tool.calls
    assert (start, end) == ("init", "finish") and begun["config"]["method"] == "csd"
    assert begun["name"] == "digits-csd-2tasks-seed0"
    assert sent == [("log", {"ce": 3.0 - step}, {"step": step}) for step in range(3)]


def test_a_run_on_images_of_ones_own_is_named_without_their_path(tool):
    with epoch_logger(tool.__name__, replace(CONFIG, dataset="/home/me/flowers")):
        pass
    assert tool.calls[0][1]["name"].startswith("own-csd")


def test_the_tool_is_told_the_end_also_after_an_error(tool):
    with pytest.raises(KeyboardInterrupt), epoch_logger(tool.__name__, CONFIG):
        raise KeyboardInterrupt
    assert tool.calls[-1][0] == "finish"


def test_without_a_tool_there_is_nothing_to_call():
    with epoch_logger(None, CONFIG) as on_epoch:
        assert on_epoch is None


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tool_that_is_not_installed_is_named(monkeypatch, name):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install {name}"), epoch_logger(name, CONFIG):
        pass


def test_the_command_line_logs_the_history_that_it_keeps(tool, tmp_path):
    command = ["train", "--epochs", "2", "--device", "cpu", "--quiet", "--log", tool.__name__]
    csd(*command, runs=tmp_path)
    sent = [call[1] for call in tool.calls if call[0] == "log"]
    assert [(r["task"], r["epoch"]) for r in sent] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "csd" in sent[-1] and "csd" not in sent[0]
    tool.calls.clear()
    csd(*command, runs=tmp_path)  # the run is finished: its history is sent all the same
    assert [call[1] for call in tool.calls if call[0] == "log"] == sent
