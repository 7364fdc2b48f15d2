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
assert all(bought(recipe, "csd", 2)[0] > 20 for recipe in ("ce", "ce+triplet"))
assert bought("ce+kd", "csd", 2)[1] == "does not", "CSD costs points beside CE and KD"

assert all(bought(recipe, "mmd", 2)[0] > 20 for recipe in ("ce+triplet", "ce+triplet+kd"))
assert not any({"mmd", "fecd"} & {*r.split("+")} and "triplet" not in r for r in digits)

# Along the weights: [factors, (old classes, new classes, old gallery)] of each method.
assert {found.shape for found in curves.values()} == {(len(FACTORS), 8, 3)}
lwf, csd = (curves[name].mean(axis=1) for name in ("lwf", "csd"))
session.check("CSD's lead at × 1", csd[1, 0] - lwf[1, 0], 11, 0.5)
assert np.ptp(csd[1:, 0]) < 1 and (np.diff(lwf[:, 0]) > 0).all(), "one flat, the other rising"
assert 0 < csd[-1, 0] - lwf[-1, 0] < 1, "at × 30 less than a point is left"
assert lwf[3:, 2].min() > csd[:, 2].max(), "from × 10 on LwF is above all of CSD's curve"
of_lwf, *of_csd = chosen.values()
assert all(of.keys() == of_lwf.keys() == {*range(8)} for of in of_csd)
verdicts = [comparison.paired([of[s][2] - of_lwf[s][2] for s in of_lwf])[-1] for of in of_csd]
assert verdicts == ["does not", "undecided"], "one factor, two factors, in the old gallery"
for of in of_csd:
    gaps = [of[s][0] - of_lwf[s][0] for s in of_lwf]
    assert 0 < np.mean(gaps) < 1 and comparison.paired(gaps)[-1] == "holds", "less than a point"

# The playground: its button, with settings that no cell above has tried.
*inputs, button, picture = widgets.panel(try_out, press="Train", **controls).children
shown = dict(zip(controls, inputs, strict=True))
for choice in (
    dict(triplet=False, kd=10.0, csd=0.0, mmd=0.1, seed=1),
    dict(triplet=True, kd=0.3, csd=3.0, mmd=0.0, seed=7),
):
    for name, value in choice.items():
        shown[name].value = value
    button.click()
    assert 'role="alert"' not in picture.value, picture.value  # a button's errors are only shown
    used = [n for n in ("kd", "csd", "mmd") if choice[n]]
    recipe = "+".join(["ce", *["triplet"] * choice["triplet"], *used])
    settings = {f"lambda_{n}": choice[n] for n in used}
    mine_now = widgets.three_numbers(session.run(recipe, choice["seed"], **on_digits, **settings))
    for value in (
        f"{recipe}, lambda_",
        f", seed {choice['seed']}: ",
        *(f"{n:.1f} %" for n in mine_now),
    ):
        assert value in picture.value, value

old, new_classes, gallery = np.array(
    [
        widgets.three_numbers(session.run("ce+kd+mmd", s, **on_digits, lambda_kd=10.0))
        for s in range(3)
    ]
).T
beside = np.array([digits["ce+kd"][s] for s in range(3)]).T
assert (gallery > 90).all() and (gallery > beside[2]).all(), "what we found in the playground"
assert 0 < (beside[1] - new_classes).mean() < 3, "a point or so on the new classes"
low, usual, high = (
    widgets.three_numbers(session.run("ce+triplet+csd", **on_digits, lambda_csd=w))
    for w in (0.1, 1.0, 10.0)
)
assert low[0] + 4 < usual[0] and high[0] < usual[0] + 1.5, "from 1 on it rises no more"
assert high[1] > low[1] - 2, "no price on the new classes that one run could show"
with_kd = [
    [session.run("lwf", s, **on_digits, lambda_kd=w).matrix.own[:, 0] for s in range(3)]
    for w in (1.0, 10.0)
]
(before, light), (_, heavy) = np.mean(with_kd, axis=1)
assert heavy - light > 0.5 * (before - light), "with ten times its weight KD keeps most of it"

assert mine["ce+triplet"] < mine["ce"] and mine["ce+triplet+csd"] > mine["ce+triplet"] + 5
for recipe, by_seed in photographs.items():
    assert np.isfinite([values[:2] for values in by_seed.values()]).all(), recipe

assert later["fine-tuning"][:, -1].mean() < 0.3, "under fine-tuning it falls far"
assert (later["csd"][:, -1] > 0.55).all() and np.ptp(later["csd"][:, -5:]) < 0.2, "it is flat"
(positive, negative), teacher = measured["CSD"], measured["teacher"]
assert positive > 0.8 > teacher[0] + 0.2, "CSD brings together what the teacher has scattered"
assert negative > 2 * (1 - positive), "most of what is left comes from the negatives"
assert 1 + teacher[1] - teacher[0] > 1 + negative - positive + 0.5, "it is no copy"


def column(rows, place):
    return np.mean([by_seed[place] for by_seed in rows])


of_old, of_tuned, _ = under.values()
assert column(of_old, 0) > 0.5 and column(of_tuned, 0) < 0.3, "the teacher is the reason"
assert column(of_tuned, 2) < column(of_old, 2) - 5, "under a teacher that forgot, CSD saves less"
whole, third, tenth, margin = balance.values()
ends = [column(rows, 0) for rows in (whole, third, tenth)]
assert ends[0] > ends[1] > ends[2] and ends[2] < 0.3, "a smaller weight, a lower triplet loss"
apart = [column(rows, 1) for rows in (whole, third, tenth)]
assert apart[0] > apart[1] > apart[2] and apart[0] > 0.4 > 0.2 > apart[2], "the further apart"
kept = [column(rows, 2) for rows in (whole, third, tenth)]
assert kept[0] > kept[1] > kept[2] and kept[0] > kept[2] + 5, "and the more is forgotten"
assert column(whole, 3) > column(tenth, 3) - 1.5, "the new classes do not pay"
assert column(margin, 0) < 0.1 and column(margin, 1) > 0.5
assert column(margin, 2) > kept[2] + 4, "with the small margin the old classes are kept"
longer = session.run("csd", later_epochs=30).history[-1]["triplet"]
session.check("triplet loss after 30 epochs", longer, later["csd"][0, -1], 0.15)
