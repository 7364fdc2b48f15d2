# ruff: noqa: F821
"""What chapter 7 says, checked in its own kernel after its last cell."""

import numpy as np

assert [len(list((folder / name).iterdir())) for name in given.class_names] == [100] * 10
report = describe(find_own_images(folder))
assert "800 training and 200 test images of 10 classes" in report
assert report.endswith("test images that are training images too: 0")
assert images.train_images.shape[0] == 800 and len(mine["csd"][0].tasks[0].test_labels) == 100
assert mine["csd"][0].tasks[0].train_images.shape[1:] == (1280, 1, 1)

share = {n: np.array([r.matrix.own[-1] for r in runs]).mean(axis=0) for n, runs in mine.items()}
old_gallery = {n: np.mean([r.matrix.in_first_gallery() for r in mine[n]]) for n in mine}
assert share["initial"][1] > 0.65, "the frozen network finds most of the new classes"
assert pixels[1] > 100 * share["initial"][1], "raw pixels find even more of them"
assert pixels[0] < 100 * share["initial"][0], "though fewer of the old classes"
assert share["fine-tuning"][1] > share["initial"][1] + 0.03, "fine-tuning learns them better"
assert share["fine-tuning"][0] < share["initial"][0] - 0.04, "and forgets some of the old ones"
for name in ("lwf", "csd"):
    assert share[name][0] > share["fine-tuning"][0], "these forget less"
    assert old_gallery["fine-tuning"] < old_gallery[name] < old_gallery["initial"]
assert old_gallery["lwf"] > share["lwf"][0], "the old gallery is better than its own new one"
assert old_gallery["lwf"] > old_gallery["csd"] + 0.01, "here LwF is ahead in the old gallery"
assert abs(share["lwf"][0] - share["csd"][0]) < 0.08, "and which of them leads is not decided"
assert right["initial"][query] > right["fine-tuning"][query]
assert (old.test_labels == mine["csd"][0].tasks[0].test_labels).all(), "the same images in order"
