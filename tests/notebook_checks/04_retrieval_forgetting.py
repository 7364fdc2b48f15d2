# ruff: noqa: F821
"""What chapter 4 says, checked in its own kernel after its last cell."""

from csd_lib.paper.seeds import paired

assert counts == [0, 1, 3, 2, 0, 0]
for k, quoted in ((1, 3 / 6), (2, 4 / 6), (4, 1)):
    session.check(f"Recall@{k} by hand", by_hand[k], quoted, 1e-9)


def fall(name, kind):
    return 100 * np.mean([getattr(r.matrix, kind)[[0, -1], 0] @ [1, -1] for r in five[name]])


session.check("a frozen network cannot forget", fall("initial", "own"), 0, 1e-9)
assert fall("initial", "seen") > 1, "it falls in the growing gallery all the same"
below = {
    kind: 100 * np.mean([getattr(r.matrix, kind)[-1, 0] for r in five["initial"]])
    - 100 * np.mean([getattr(r.matrix, kind)[-1, 0] for r in five["csd"]])
    for kind in ("own", "seen")
}
session.check("CSD below the frozen network, large gallery", below["seen"], 4, 1.5)
session.check("CSD below the frozen network, own classes", below["own"], 1, 0.9)
assert all((np.diff(r.matrix.seen[:, 0]) <= 0).all() for r in five["initial"]), "with every task"
forgotten = {
    name: np.mean([retrieval.forgetting(run.matrix.own) for run in five[name]]) for name in five
}
assert forgotten["initial"] == 0 and forgotten["csd"] < forgotten["fine-tuning"]
assert all((np.triu(r.matrix.own, 1)[np.triu_indices(5, 1)] > 0.8).all() for r in five["csd"])
for j in range(1, 5):
    assert pixels_find[j] > max(means[n][0, j] for n in five), "raw pixels find them, and better"
found_by_csd = set(missed["fine-tuning"]) - set(missed["csd"])
assert len(found_by_csd) > len(missed["fine-tuning"]) / 3, "many of them are found with CSD"
assert 0 < len(missed["csd"]) < len(missed["fine-tuning"]), "CSD misses some, too"
assert right["csd"] > right["fine-tuning"]

for kind in (own, seen):
    assert max(map(abs, kind["initial"])) == 0
    assert min(kind["fine-tuning"]) > max(kind["csd"]) + 5, "CSD loses less with every seed"
assert np.mean(seen["fine-tuning"]) > np.mean(own["fine-tuning"]), "larger in the large gallery"
averages = {name: np.mean(values) for name, values in final["average"].items()}
assert abs(averages["fine-tuning"] - averages["initial"]) < 3, "about where the frozen network is"
assert averages["csd"] > averages["joint"] - 2.5, "CSD comes near joint training"
new_classes = {name: np.mean(values) for name, values in final["new classes"].items()}
assert new_classes["csd"] > new_classes["fine-tuning"], "ahead on the new classes, too"
assert pixels > 0.98 and 100 * pixels > averages["csd"], "CSD does not beat the pixels"
lead = {
    group: {
        name: np.mean(values) - np.mean(by_method["initial"]) for name, values in by_method.items()
    }
    for group, by_method in clothes.items()
}
assert {len(values) for by_method in clothes.values() for values in by_method.values()} == {8}
session.check("clothes: old classes under fine-tuning", lead["old classes"]["fine-tuning"], -8, 0.5)
for name in ("lwf", "csd"):
    session.check(f"clothes: old classes under {name}", lead["old classes"][name], -4.5, 0.2)
    session.check(f"clothes: new under {name}", lead["new classes"][name], 17, 1)
    session.check(f"{name} above pixels", np.mean(clothes["average"][name]) - of_pixels, 2, 0.5)
session.check("clothes: new classes under fine-tuning", lead["new classes"]["fine-tuning"], 17, 0.5)
session.check("clothes: pixels", of_pixels, 72, 0.5)
session.check("level", np.mean(clothes["average"]["fine-tuning"]), of_pixels, 0.5)
for group, by_method in clothes.items():
    _, _, verdict = paired(np.subtract(by_method["csd"], by_method["lwf"]).tolist())
    assert verdict == "undecided", f"{group}: no difference between CSD and LwF"
accuracy, recall = first_column("accuracy"), first_column("seen")
for name in accuracy:
    assert accuracy[name][:, 0].min() > 95 and accuracy[name][:, 1].max() < 3, "hardly one digit"
    assert recall[name][:, 1].min() > 60, "the same networks still find most old digits"
