"""The metrics as torchmetrics: the functions' own values, whoever saw which rows, in anybody's modules."""

import pickle

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torchmetrics import Metric, MetricCollection

from lmsd.errors import UserError
from lmsd.metrics import (
    clip_mmd,
    clip_scores,
    frechet_distance,
    frechet_infinity,
    inception_scores,
    kernel_distance,
    kernel_distance_by_rows,
    manifold,
    memorization,
    r_precision,
    wilson,
)
from lmsd.metrics import streaming as s
from lmsd.metrics.shares import Share


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REAL, FAKE, TRAIN, TEXTS = draw(120, 4), 1.2 * draw(120, 4, 1) + 0.3, draw(200, 4, 2), draw(120, 4, 3)
GROUPS = torch.arange(120) % 20
METRICS = {
    "fd": (s.FrechetDistance, frechet_distance(FAKE, REAL)),
    "fd_infinity": (s.FrechetInfinity, frechet_infinity(FAKE, REAL).value),
    "kid": (s.KernelDistance, kernel_distance(FAKE, REAL).value),
    "kid_paired": (s.PairedKernelDistance, kernel_distance_by_rows([FAKE], REAL, GROUPS)[1].interval.value),
    "cmmd": (s.CLIPMMD, clip_mmd(FAKE, REAL).value),
    "cmmd_paired": (s.PairedCLIPMMD, None),
    "precision": (s.Precision, manifold(FAKE, REAL).precision),
    "recall": (s.Recall, manifold(FAKE, REAL).recall),
    "density": (s.Density, manifold(FAKE, REAL).density),
    "coverage": (s.Coverage, manifold(FAKE, REAL).coverage),
    "class_score": (s.InceptionScore, sum(inception_scores(FAKE)) / 10),
    "neighbor_ratio": (lambda: s.NeighborRatio(TRAIN), memorization([FAKE], TRAIN, REAL).near.ratio.value),
    "copies": (lambda: s.Copies(TRAIN), memorization([FAKE], TRAIN, REAL).copies.value),
    "c_t": (lambda: s.CT(TRAIN), memorization([FAKE], TRAIN, REAL).c_t.value),
}


def fed(metric, rows, size=7):
    """Rows that come in batches of one size, out of order, real and generated in turns."""
    for part in rows.split(size):
        for real in (True, False):
            metric.update((REAL if real else FAKE)[part].float(), real=real, position=part)
    return metric


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_its_function_whatever_the_order_of_rows(name):
    make, want = METRICS[name]
    metric = make()
    assert isinstance(metric, Metric)
    assert metric.kind == name
    rows = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    for part in rows.split(7):
        metric.update(FAKE[part], position=part)
        metric.update(REAL[part], real=True, position=part)
    found = metric.compute()
    assert found.dtype == torch.float64
    plain = make()
    plain.update(REAL, real=True)
    plain.update(FAKE)
    assert torch.equal(found, plain.compute()), "rows are put in order of position"
    if want is not None:
        assert float(found) == want or float(found) == pytest.approx(want, rel=1e-12)
    scores = metric.scores()
    if name != "fd_infinity":
        assert scores[name].interval.value == pytest.approx(float(found), rel=1e-9)
    metric.reset()
    with pytest.raises(UserError, match="has seen nothing: call update"):
        metric.compute()


def test_alignment_and_shares():
    clip, precise = s.CLIPScore(), s.RPrecision(candidates=20)
    for part in torch.arange(120).flip(0).split(50):
        for metric in (clip, precise):
            metric.update(FAKE[part], TEXTS[part], position=part)
    assert float(clip.compute()) == float(clip_scores(FAKE, TEXTS).mean())
    assert float(precise.compute()) == float(r_precision(FAKE, TEXTS, candidates=20).double().mean())
    assert clip.scores()["clip_score"].interval.low < float(clip.compute())
    share = Share()
    for part in (FAKE[:, 0] > 0).split(33):
        share.update(part)
    hits = int((FAKE[:, 0] > 0).sum())
    assert share.scores()["share"].interval == wilson(hits, 120)
    assert float(share.compute()) == hits / 120


def test_a_collection_takes_images_and_real_and_shares_its_states():
    """With a feature of images, beside torchmetrics' own FID with the same one."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Means(torch.nn.Module):
        num_features = 8

        def forward(self, x):
            return x.float().mean(dim=2).flatten(1)

    images = [
        torch.randint(0, 256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    ]
    images = [each.to(torch.uint8) for each in images]
    collection = MetricCollection(
        {
            "ours": s.FrechetDistance(feature=Means()),
            "kid": s.KernelDistance(feature=Means()),
            "theirs": FrechetInceptionDistance(feature=Means()),
        }
    )
    for real, each in zip((True, False), images, strict=True):
        for part in each.split(25):
            collection.update(part, real=real)
    found = collection.compute()
    assert float(found["ours"]) == pytest.approx(float(found["theirs"]), rel=1e-4)
    assert set(found) == {"ours", "kid", "theirs"}


def test_rows_that_do_not_belong_together_have_values_and_no_pairs():
    metric = s.KernelDistance()
    metric.update(REAL[:90], real=True)
    metric.update(FAKE)
    assert set(metric.scores()) == {"kid"}
    assert float(metric.compute()) == kernel_distance(FAKE, REAL[:90]).value
    paired = s.PairedKernelDistance()
    paired.update(REAL[:90], real=True)
    paired.update(FAKE)
    with pytest.raises(UserError, match="wants real and generated rows of the same positions"):
        paired.compute()
    fd = s.FrechetDistance()
    fd.update(REAL[:90], real=True)
    fd.update(FAKE)
    found = fd.scores()["fd"].interval
    assert found.value == pytest.approx(frechet_distance(FAKE, REAL[:90]), rel=1e-12)
    assert found.low < found.value < found.high


def test_bad_rows_are_refused():
    with pytest.raises(UserError, match=r"FrechetDistance: rows are real numbers \[b,d\], not \[3\]"):
        s.FrechetDistance().update(torch.zeros(3))
    metric = s.KernelDistance()
    metric.update(REAL, real=True)
    with pytest.raises(UserError, match="has seen real rows alone"):
        metric.compute()


def test_in_somebody_elses_module():
    """Logged by Lightning as the value at the epoch's end."""
    from lightning.pytorch import LightningModule, Trainer

    class Theirs(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.fd = s.FrechetDistance()

        def validation_step(self, rows, index):
            self.fd.update(REAL[rows], real=True, position=rows)
            self.fd.update(FAKE[rows], position=rows)
            self.log("fd", self.fd)

    trainer = Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.arange(120), batch_size=40)
    (found,) = trainer.validate(Theirs(), loader, verbose=False)
    assert found["fd"] == pytest.approx(frechet_distance(FAKE, REAL), rel=1e-6)


def rank(number, address, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    mine = torch.arange(119, -1, -1)[number::2] if number else torch.arange(119, -1, -1)[::2]
    mine = torch.cat([mine, torch.arange(0)])
    found = {}
    for name in METRICS:
        metric = fed(METRICS[name][0](), mine, size=11)
        found[name] = (metric.compute(), {k: v.interval for k, v in metric.scores().items()})
    share = Share()
    share.update(FAKE[mine, 0] > 0)
    found["share"] = share.compute()
    with open(f"{path}.{number}", "wb") as file:
        pickle.dump(found, file)
    dist.destroy_process_group()


def test_two_ranks_equal_one_process_bit_for_bit(tmp_path):
    mp.spawn(rank, args=(f"file://{tmp_path / 'meet'}", str(tmp_path / "found")), nprocs=2)
    ranks = [pickle.loads((tmp_path / f"found.{number}").read_bytes()) for number in (0, 1)]
    for name in METRICS:
        metric = fed(METRICS[name][0](), torch.arange(120), size=120)
        value, intervals = metric.compute(), {k: v.interval for k, v in metric.scores().items()}
        for found in ranks:
            assert torch.equal(found[name][0], value), name
            assert str(found[name][1]) == str(intervals), name
    assert all(float(found["share"]) == float((FAKE[:, 0] > 0).double().mean()) for found in ranks)
