# ruff: noqa: F821
"""What the opening says, checked in its own kernel after its last cell."""

from csd_lib.paper.seeds import paired

kept_index, new_index = bars.values()
for name in ("fine-tuning", "csd"):
    assert kept_index["initial"][0] - kept_index[name][0] > 20, "with the old index it collapses"
lost = new_index["initial"][0] - new_index["fine-tuning"][0]
assert 2 < lost < kept_index["initial"][0] - kept_index["fine-tuning"][0], "it falls by less"
own_index, made_anew = eight.values()
average = {name: sum(values) / len(values) for name, values in made_anew.items()}
assert {len(values) for by_name in eight.values() for values in by_name.values()} == {8}
assert abs(average["initial"] - average["fine-tuning"] - 10) < 1, "it forgets ten points"
for name in ("csd", "lwf"):
    assert abs(average[name] - average["fine-tuning"] - 4) < 0.5, "and this keeps four of them"
assert [*recorded["csd"]] == [*recorded["fine-tuning"]]
saved = [a - b for a, b in zip(own_index["csd"], own_index["fine-tuning"], strict=True)]
assert paired(saved)[2] == "undecided", "whether CSD helps with the index kept"
changed = [own_index[name] for name in ("fine-tuning", "lwf", "csd")]
assert max(map(min, changed)) < min(map(max, changed)), "the three overlap"
