# ruff: noqa: F821
"""What the opening says, checked in its own kernel after its last cell."""

from csd_lib.paper.seeds import paired

kept_index, new_index = bars.values()
for name in ("fine-tuning", "csd"):
    assert kept_index["initial"][0] - kept_index[name][0] > 20, "with the old index it collapses"
lost = new_index["initial"][0] - new_index["fine-tuning"][0]
assert 2 < lost < kept_index["initial"][0] - kept_index["fine-tuning"][0], "it falls by less"
average = {name: sum(values) / len(values) for name, values in eight.items()}
assert {len(values) for values in eight.values()} == {8}
assert abs(average["initial"] - average["fine-tuning"] - 10) < 1, "it forgets ten points"
for name in ("csd", "lwf"):
    assert abs(average[name] - average["fine-tuning"] - 4) < 0.5, "and this keeps four of them"
saved = [
    recorded["csd"][seed].matrix.in_first_gallery() - run.matrix.in_first_gallery()
    for seed, run in recorded["fine-tuning"].items()
]
assert paired(saved)[2] == "undecided", "whether CSD helps with the index kept"
