# ruff: noqa: F821
"""What chapter 8 says, checked in its own kernel after its last cell."""


def bought(recipe, term, column=0):
    points = np.array(added(digits, recipe, term, column))
    assert len(points) == 8
    return points.mean(), comparison.paired((points / 100).tolist())[-1]


assert {len(by_seed) for by_seed in digits.values()} == {8}
for recipe in ("ce", "ce+kd"):
    session.check(f"{recipe} + triplet", bought(recipe, "triplet")[0], -10, 1)
for recipe in ("ce+csd", "ce+kd+csd"):
    assert bought(recipe, "triplet")[1] == "undecided", "beside CSD the triplet term does no harm"
for recipe, term, quoted in (
    ("ce+triplet", "csd", 12),
    ("ce", "csd", 3),
    ("ce", "kd", 3),
    ("ce+triplet", "mmd", 11),
):
    points, verdict = bought(recipe, term)
    session.check(f"{recipe} + {term}", points, quoted, 0.5)
    assert verdict == "holds"
for recipe, term in (("ce+kd", "csd"), ("ce+triplet", "kd")):
    assert bought(recipe, term)[1] == "undecided", "and this is left open"

in_old_gallery = {pair: bought(*pair, 2)[0] for pair in (("ce", "kd"), ("ce+triplet", "kd"))}
assert in_old_gallery["ce", "kd"] > 50 and 0 < in_old_gallery["ce+triplet", "kd"] < 10
session.check("what the triplet term takes there", bought("ce+kd", "triplet", 2)[0], -43, 3.5)
assert all(bought(recipe, "csd", 2)[0] > 20 for recipe in ("ce", "ce+triplet"))
assert bought("ce+kd", "csd", 2)[1] == "does not", "CSD costs points beside CE and KD"

assert mine["ce+triplet"] < mine["ce"] and mine["ce+triplet+csd"] > mine["ce+triplet"] + 5
for recipe, by_seed in photographs.items():
    assert np.isfinite([values[:2] for values in by_seed.values()]).all(), recipe

assert later["fine-tuning"][:, -1].mean() < 0.15, "under fine-tuning it vanishes"
assert (later["csd"][:, -1] > 0.55).all() and np.ptp(later["csd"][:, -5:]) < 0.2, "it is flat"
(positive, negative), teacher = measured["CSD"], measured["teacher"]
assert positive > 0.8 > teacher[0] + 0.2, "CSD brings together what the teacher has scattered"
assert negative > 2 * (1 - positive), "most of what is left comes from the negatives"
assert 1 + teacher[1] - teacher[0] > 1 + negative - positive + 0.5, "it is no copy"
assert under["teacher"] > 0.5 and under["fine-tuned"] < 0.2, "the teacher is the reason"
whole, third, tenth, margin = balance.values()
ends = [run.history[-1]["triplet"] for run in (whole, third, tenth)]
assert ends[0] > ends[1] > ends[2] and ends[2] < 0.2, "a smaller weight, a lower triplet loss"
assert parts(whole.models[1], new)[1] > 0.4 > 0.2 > parts(tenth.models[1], new)[1]
old, later_classes = np.array([widgets.three_numbers(r)[:2] for r in balance.values()]).T
assert old[0] > old[1] > old[2] and old[0] > old[2] + 5, "and the more is forgotten"
assert np.ptp(later_classes) < 4, "the new classes do not pay"
assert margin.history[-1]["triplet"] < 0.1 and parts(margin.models[1], new)[1] > 0.5
assert old[3] > old[2] + 4, "with the small margin the old classes are kept"
longer = session.run("csd", later_epochs=30).history[-1]["triplet"]
session.check("triplet loss after 30 epochs", longer, later["csd"][0, -1], 0.15)
