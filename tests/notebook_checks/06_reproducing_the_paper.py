# ruff: noqa: F821
"""What chapter 6 says, checked in its own kernel after its last cell."""

changed = {field for field, values in differences.items() if values[0] != values[1]}
assert changed == {"preset", "milestones", "teacher_statistics", "selection"}
for pair in (initial["own"][0], initial["seen"][0], initial["seen"][1]):
    assert pair[0] < 67.6 - 5 and pair[1] > 21.7 + 5, "its two numbers pull in opposite directions"
long = by_method(protocol)
away = {
    name: 100 * np.mean([m.own[-1, 0] for m in found.values()]) - protocol.published[name][0]
    for name, found in long.items()
}
assert max(abs(away["initial"]), abs(away["csd"])) < 1.15, "within 1.1 points for the old classes"
assert 7.3 < away["fine-tuning"] < 7.5, "fine-tuning keeps 7.4 more"
assert -7 < away["lwf"] < -6 and -16.5 < away["mmd"] < -15.5, "LwF and MMD keep 6.5 and 16 less"
verdicts = {
    g: {row[0]: row for row in comparison.claim_rows(protocol, g)[1]} for g in ("own", "seen")
}
over_lwf = "CSD is above LwF on average"
assert verdicts["own"][over_lwf][3].startswith("+3.0") and verdicts["own"][over_lwf][-1] == "holds"
assert verdicts["seen"][over_lwf][-1] == "undecided"
by_class = [np.mean([long[n][s].own[-1] for s in long["csd"]], axis=0) for n in ("csd", "lwf")]
old_lead, new_lead = 100 * (by_class[0] - by_class[1])
assert old_lead > 1.1 + 3 and new_lead < 0, "made otherwise: all of it on the old classes"
assert [len(long[name]) for name in ("csd", "lwf", "mmd", "fine-tuning")] == [2, 2, 2, 1]
assert initial["own"][0, 1] > 21.7 + 5, "after 25 epochs ours finds far more"
paper_initial = np.array([67.6, 21.7])
assert abs(100 * longer.own[0] - paper_initial).max() < 1.2, "within 1.1 points of both"
assert abs(100 * longer.seen[1] - paper_initial).min() > 5, "with all classes far from both"
for gallery in ("own", "seen"):
    assert min(leads("csd", "fine-tuning", gallery, (0,))) > 3, "CSD keeps more of the old classes"
point = leads("csd", "lwf", "own", (0, 1))
assert len(point) >= 3 and 0.5 < min(point) <= max(point) < 1.5, "about a point, with every seed"
old = {n: np.mean([m.in_first_gallery() for m in runs[n].values()]) for n in ("csd", "lwf")}
assert old["csd"] > old["lwf"] + 0.1, "in the old gallery it is worth far more"
for gallery in ("own", "seen"):
    beside_kd = leads("csd", "mmd-kd", gallery, (0, 1))
    assert len(beside_kd) >= 3 and max(beside_kd) < -0.5, "MMD beside KD is ahead with every seed"
seeds = range(3)
for place in (0, 1):
    for s in seeds:
        lead = ends["lwf", "class_means", s][place] - ends["csd", "random", s][place]
        assert lead > 0.005, "LwF with class means is above CSD with random rows with every seed"


def verdict(first, second, place):
    return comparison.paired([ends[(*first, s)][place] - ends[(*second, s)][place] for s in seeds])[
        2
    ]


csd, started = ("csd", "random"), ("lwf", "class_means")
assert verdict(("mmd-kd", "random"), csd, 0) == verdict(("mmd-kd", "random"), csd, 1) == "undecided"
alone, lwf = ("fine-tuning", "class_means"), ("lwf", "random")
assert (verdict(alone, lwf, 0), verdict(alone, lwf, 1)) == ("undecided", "holds")
on_top = ("csd", "class_means")
assert (verdict(on_top, started, 0), verdict(on_top, started, 1)) == ("undecided", "holds")
clean = averages["running, last"]
above = {
    choice: [(values[s] - clean[s]) / 100 for s in clean] for choice, values in averages.items()
}
assert len(clean) == 8 and 0.01 < np.mean(above["running, test"]) < np.mean(above["batch, test"])
verdicts = {choice: comparison.paired(points)[2] for choice, points in above.items()}
assert verdicts["running, test"] == verdicts["batch, test"] == "holds"
assert verdicts["batch, last"] == "undecided", "the teacher alone"
shares = [wrong_way_round(better, worse) for worse, better in pairwise(eight)]
assert max(shares) > 10, "there are neighbours whose order single runs would often reverse"
clear = [seeds_won(better, worse) for worse, better in pairwise(eight)]
assert (8, 8) in clear, "compared seed by seed, a small difference can be clear"
saved = {
    name: 100 * np.array([r.matrix.own[-1, 0] for r in digits if r.config.method == name])
    for name in ("fine-tuning", "csd")
}
assert saved["csd"].min() > saved["fine-tuning"].max(), "on the digits with every seed"


def paired_by_seed(better, worse):
    first, second = kept[better], kept[worse]
    return comparison.paired([(first[s] - second[s]) / 100 for s in first if s in second])[-1]


for better, worse in (("csd", "mmd-kd"), ("lwf", "fine-tuning")):
    assert paired_by_seed(better, worse) == "holds" and wrong_way_round(better, worse) > 0
assert paired_by_seed("mmd-kd", "mmd") == "undecided"
