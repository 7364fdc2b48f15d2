# ruff: noqa: F821
"""What chapter 1 says, checked in its own kernel after its last cell."""

session.check("classes in both tasks", len(shared_classes), 0, 0)
session.check("training images in no task", len(dataset.train_labels) - images_in_tasks, 0, 0)
session.check("copies among test images", copies, 0, 0)
session.check("height of an image", dataset.train_images.shape[2], 8, 0)
session.check("label of the first class of task 2", second.first_label, 5, 0)
session.check("images of the rarest class", dataset.train_labels.bincount().min().item(), 116, 0)
session.check("images of the most frequent", dataset.train_labels.bincount().max().item(), 122, 0)
assert [len(task.classes) for task in uneven] == [4, 3, 3]
crops = augment(originals[:1].repeat(20, 1, 1, 1), 1, False, torch.Generator().manual_seed(0))
assert 4 < len(crops.unique(dim=0)) <= 9, "another random crop for each image, of nine"
