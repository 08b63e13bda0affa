"""Halves for the floor: disjoint, matched, random."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.metrics import frechet_distance, matched_halves, matched_rows


def test_halves_are_disjoint_and_label_matched():
    labels = torch.randint(0, 7, (501,), generator=torch.Generator().manual_seed(0))
    a, b = matched_halves(labels, 3)
    assert set(a.tolist()).isdisjoint(b.tolist())
    assert len(set(a.tolist())) == len(a) == len(b)
    assert torch.equal(labels[a], labels[b])
    odd = int((labels.bincount() % 2).sum())
    assert 2 * len(a) == 501 - odd, "only an odd one of each label may be left out"


def test_captions_work_as_labels_and_seeds_matter():
    captions = [f"a handwritten {word}" for word in ("one", "two", "three") * 20]
    a, b = matched_halves(captions, 0)
    assert [captions[row] for row in a] == [captions[row] for row in b]
    assert torch.equal(a, matched_halves(captions, 0)[0])
    assert not torch.equal(a, matched_halves(captions, 1)[0])


def test_free_captions_are_paired_with_neighbors():
    captions = [f"an emoji of {word}" for word in ("ant", "apple", "zebra", "zoo", "moon", "mood", "x")]
    a, b = matched_halves(captions, 0)
    pairs = {frozenset((captions[i].split()[-1], captions[j].split()[-1])) for i, j in zip(a, b, strict=True)}
    assert pairs == {frozenset(pair) for pair in (("ant", "apple"), ("mood", "moon"), ("x", "zebra"))}


def test_partners_are_drawn_and_not_the_next_rows():
    """Data sorted by content would give halves that are nearer to each other than fresh images are."""
    a, b = matched_halves([0] * 400, 0)
    assert ((a - b).abs() == 1).sum() < 10, "by chance one pair in 200"
    assert (a - b).abs().double().mean() == pytest.approx(400 / 3, rel=0.15)


def test_every_row_is_as_often_on_one_side_as_on_the_other():
    labels = [0] * 6 + [1] * 6
    first = torch.zeros(12)
    for seed in range(400):
        first[matched_halves(labels, seed)[0]] += 1
    assert (first - 200).abs().max() < 4.5 * 10, "200 ± 10 of 400 each"


def test_matching_takes_the_label_histogram_out_of_the_floor():
    """Two classes far apart: unmatched halves differ by their label counts, matched ones do not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=generator)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) + 20.0 * labels[:, None]
    matched, unmatched = 0.0, 0.0
    for seed in range(30):
        a, b = matched_halves(labels, seed)
        c, d = matched_halves([0] * 200, seed)
        matched += frechet_distance(x[a], x[b])
        unmatched += frechet_distance(x[c], x[d])
    assert unmatched > 3 * matched


def test_no_pair_is_refused():
    with pytest.raises(UserError, match="larger held-out set"):
        matched_halves([0], 0)


def test_rows_with_the_same_labels_come_once_each():
    among = [0, 1, 2, 3] * 50
    labels = [3, 3, 1, 0, 2, 1] * 8
    rows = matched_rows(labels, among, 0).tolist()
    assert [among[row] for row in rows] == labels
    assert len(set(rows)) == len(rows)
    assert rows != matched_rows(labels, among, 1).tolist()


def test_labels_that_are_used_up_get_other_rows():
    rows = matched_rows(["a", "a", "b", "c"], ["a", "b", "x", "y"], 0).tolist()
    assert rows[0] == 0
    assert rows[2] == 1
    assert sorted(rows) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="3 training samples are fewer than the 4"):
        matched_rows([1, 1, 1, 1], [1, 1, 1], 0)


@pytest.mark.parametrize("names", [[3], ["a handwritten three"], [3, 7]])
def test_a_label_of_which_training_has_too_few_is_refused(names):
    labels = [names[row % len(names)] for row in range(150)]
    among = [names[row % len(names)] for row in range(97)] + [names[0].__class__(9)] * 200
    with pytest.raises(
        UserError, match=rf"held-out samples have '{names[0]}' and only \d+ training samples do"
    ):
        matched_rows(labels, among, 0)
    assert len(matched_rows(labels, [*among, *labels], 0)) == 150
