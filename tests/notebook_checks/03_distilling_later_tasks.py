# ruff: noqa: F821
"""What chapter 3 says, checked in its own kernel after its last cell."""

from csd_lib.paper import ledger
from csd_lib.paper.report import plain_runs
from csd_lib.paper.seeds import paired

for temperature, quoted in ((1.0, 0.328), (2.0, 0.111), (4.0, 0.030)):
    session.check(f"KD at T = {temperature:g}", kd[temperature], quoted, 0.0005)
session.check("CSD of anchor 1", loss_of_anchor[0].item(), 1.239, 0.0005)
session.check("CSD of anchor 2", loss_of_anchor[1].item(), 1.483, 0.0005)
session.check("CSD of the batch", losses.csd_loss(s, t, labels, 0.5).item(), 1.361, 0.0005)
session.check("own pair of Eq. 8", 1 - np.log(np.exp(0.5) + np.exp(-0.5) + np.exp(-1)), 0.036, 5e-4)
for degrees, quoted in ((60, 2.23), (90, 6.54), (150, 11.02)):
    loss = losses.csd_loss(on_circle(0, degrees, 120, 180), t, labels, 0.07).item()
    session.check(f"CSD at T = 0.07, student 2 at {degrees} degrees", loss, quoted, 0.006)
for temperature, quoted in ((0.07, "3.35"), (2.0, "0.15")):
    assert f"strongest pull is {quoted}" in widgets.csd_temperature(s, t, labels, temperature)[1]

nines, sixes = (said[new_task.test_labels == label].bincount(minlength=5) for label in (9, 6))
assert nines[3] > 0.7 * nines.sum() and sixes[4] > 0.6 * sixes.sum(), "9 looks like 3, 6 like 4"
teacher, tuned, with_csd = on_new.values()
assert teacher[0] < min(tuned[0], with_csd[0]) - 0.05, "the teacher finds new classes worse"
session.check("teacher's cosine between new classes", teacher[1], 0.5, 0.12)
assert tuned[1] < 0.1, "fine-tuning has brought it close to 0"
assert abs(with_csd[1] - teacher[1]) < 0.15, "CSD has hardly moved it"
to_teacher = -moving_apart.grad @ on_circle(45)[0]
assert (to_teacher > 0.2).all(), "pulled to where the teacher has them"
for place, what in enumerate(("new", "old")):
    less = movement["CSD student"][place] < 0.75 * movement["fine-tuned student"][place]
    assert less, f"the student that was held moved less on the {what} images"
assert agreement < 0.8 and strength > 5, "neither the same direction nor the same strength"

old = {name: values[:, 0] for name, values in after.items()}
new = {name: values[:, 1] for name, values in after.items()}
runs_of = plain_runs(ledger.load_records(), "digits", "clean")
eight = [[r.matrix.own[-1, 0] for r in runs_of[name].values()] for name in ("lwf", "fine-tuning")]
assert len(eight[0]) == 8 and paired(np.subtract(*eight).tolist())[2] == "undecided", "LwF's lead"
for name in ("fine-tuning", "lwf"):
    assert (old["csd"] > old[name] + 5).all(), f"CSD is far from {name} with every seed"
    assert (old["initial"] > old[name]).all() and (new["initial"] < new[name]).all()
for column in (old, new):
    gap = abs(column["csd"].mean() - column["ce+triplet+csd"].mean())
    assert gap < 1.5, "one of the two terms does nearly all the work"
assert stuck["fine-tuning"] < 0.25 and stuck["csd"] > 0.4, "the triplet loss is stuck under CSD"
session.check("points lost by gentle fine-tuning", lost_gently, 0, 2)
assert 1 < lost_plainly < 0.7 * lost["fine-tuning"].mean(), "a good part comes with the triplet"
