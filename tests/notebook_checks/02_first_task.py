# ruff: noqa: F821
"""What chapter 2 says, checked in its own kernel after its last cell."""

session.check("cross entropy by hand", by_hand, 0.408, 0.0005)
session.check("cross entropy by the library", by_library, by_hand, 1e-6)
session.check("triplet, margin 1", losses.triplet_loss(points, labels).item(), 1.06, 0.005)
session.check("triplet, margin 0.2", losses.triplet_loss(points, labels, 0.2).item(), 0.82, 0.005)
session.check("numbers in a feature", features.shape[1], 64, 0)
session.check("raw pixels find everything (%)", 100 * pixels, 100, 0.5)
assert recall[1] > 0.96, "nearly all queries find their own class first"
assert abs(untrained - recall[1]) < 0.02, "untrained, about as much as the trained one"
session.check("first epoch's triplet loss is near the margin", history[0]["triplet"], 1, 0.15)
assert history[-1]["triplet"] < 0.1, "the triplet loss almost reaches 0"
assert history[-1]["ce"] < 0.1 * history[0]["ce"], "cross entropy falls towards 0"
found = {
    name: cosines(embed(model, task.test_images).cpu(), task.test_labels)
    for name, model in (("before", network), ("after", trained))
}
assert min(found["before"]) > 0.8, "before, everything looked like everything"
assert found["after"][0] > 0.85 and found["after"][1] < 0.15, "classes nearly at right angles"
