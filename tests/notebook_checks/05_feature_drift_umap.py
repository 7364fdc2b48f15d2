# ruff: noqa: F821
"""What chapter 5 says, checked in its own kernel after its last cell."""

session.check("drift of the frozen network", mean_drift["initial"], 0, 1e-5)
for c in per_class["csd"][0]:
    of_class = {n: np.mean([d[c] for d in per_class[n]]) for n in methods}
    assert min(of_class, key=of_class.get) == "csd", f"class {c} does not move least under CSD"
    assert of_class["csd"] > 0.05, "every class has moved"
session.check("drift of a rotation", rotated_drift, 1.1, 0.1)
session.check("overlap after a rotation", rotated_overlap, 1, 0.01)
session.check("CKA after a rotation", rotated_cka, 1, 0.001)
mean = {name: np.mean(overlap[name]) for name in runs}
assert mean["initial"] == 1 and 0.5 > mean["csd"] > max(mean["lwf"], mean["fine-tuning"])
assert np.mean(cka["csd"]) > max(np.mean(cka["lwf"]), np.mean(cka["fine-tuning"]))
assert np.mean(lost["csd"]) < 0.5, "on average no Recall@1 was lost"
assert same_class["csd"] > 0.9 > same_class["fine-tuning"], "they are of the same class"
between = {name: np.mean(values) for name, values in old_gallery.items()}
own = np.mean([run.matrix.own[0, 0] for run in runs["csd"]])
session.check("frozen: old gallery and own gallery are the same", between["initial"], own, 1e-6)
assert between["fine-tuning"] < between["lwf"] < between["csd"] < between["initial"] - 0.2

recorded = dict(zip(recording.about["methods"], 100 * recording.recall[:, :, 0], strict=True))
home = {name: 100 * widgets.share_at_home(recording, name, 9) for name in recorded}
at_two = [recorded[name][9] for name in methods]
assert {f"{value:.0f}" for value in at_two} == {"96", "97"}, "Recall@1 of task 1, for all three"
assert 48 < min(home["fine-tuning"], home["lwf"]) < max(home["fine-tuning"], home["lwf"]) < 52
assert f"{home['csd']:.0f}" == "82", "so many are at home under CSD"
assert max(recorded["fine-tuning"][24], recorded["lwf"][24]) < recorded["csd"][24] - 5
assert (np.diff(recorded["fine-tuning"][20:].astype(float)) < 0).all(), "from step to step"

lwf, csd = cifar_numbers["lwf"], cifar_numbers["csd"]
assert lwf[0] - 0.03 < csd[0] < lwf[0], "a little less by the angle"
assert np.allclose(lwf[1:3], csd[1:3], rtol=0, atol=0.02), "overlap and CKA see no difference"
assert csd[3] > lwf[3] + 0.1, "they are far apart in the last column"
first = search_old_gallery(before, before, cifar_labels)
session.check("CIFAR-100, frozen", cifar_numbers["initial"][3], first, 1e-9)
fallen = [first - v[3] for n, v in cifar_numbers.items() if n != "initial"]
assert min(fallen) > 0.1, "every method that learns has lost much of it"
found = [
    (
        torch.nn.functional.normalize(cifar[name][0][is_old])
        @ torch.nn.functional.normalize(before).T
    )
    .argmax(dim=1)
    .eq(torch.arange(len(before)))
    .double()
    .mean()
    .item()
    for name in ("fine-tuning", "csd")
]
assert found[0] < 0.5 < found[1], "most queries can find themselves, were they not left out"

# A map is fitted once: images of two groups that are placed on it land in the group that is theirs.
# (Here, because UMAP compiles for half a minute in each process.)
drawn = torch.Generator().manual_seed(1)
group = torch.arange(80) < 40
points = 0.1 * torch.randn(80, 8, generator=drawn) + torch.where(group, 1, -1)[:, None]
fitted = projection.fit_map(points, seed=0)
places, moved = fitted.embedding_.copy(), points + 0.02  # fitted ones would get their own places
placed = projection.place_on_map(fitted, moved)
assert np.array_equal(placed, projection.place_on_map(fitted, moved)), "the same ones, again"
assert np.array_equal(places, fitted.embedding_), "the map has not moved"
centers = [places[group.numpy()].mean(axis=0), places[~group.numpy()].mean(axis=0)]
distances = [np.linalg.norm(placed - center, axis=1) for center in centers]
assert np.array_equal(distances[0] < distances[1], group.numpy())

homes = plots.class_centers(cifar_maps["after task 1"], cifar_labels[few_classes])


def at_home(title):
    """The share of images nearest to where the centre of their class was after task 1."""
    distances = [np.linalg.norm(cifar_maps[title] - homes[c], axis=1) for c in range(5)]
    return np.mean(np.argmin(distances, axis=0) == cifar_labels[few_classes].numpy())


assert at_home("then fine-tuning") < 0.6 < 0.75 < at_home("then CSD"), "dissolved, and not"
session.check(
    "11 % in the old gallery after fine-tuning", cifar_numbers["fine-tuning"][3], 0.11, 0.01
)
session.check("45 % after CSD", csd[3], 0.45, 0.01)
assert chance[0] < 0.1 and chance[1] < 0.1, "both are near 0 for unrelated sets"
