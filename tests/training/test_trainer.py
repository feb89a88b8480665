"""The training loop: how far it runs ahead of the device."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training import run
from ssd300_vgg16.training.checkpoint import Progress
from ssd300_vgg16.training.step import STEP_METRICS, NotFinite
from ssd300_vgg16.training.trainer import Trainer

BATCH = TrainingBatch(np.empty(0), np.empty(0), np.zeros((1, 4), np.int64), [], [])


class Device:
    """A step whose metrics stay on their way until they are waited for; `unread` are those that were not."""

    metric_names = STEP_METRICS
    background_positives = 0

    def __init__(self, *losses):
        self.losses = iter(losses)
        self.pairs = []
        self.unread, self.longest = 0, 0

    def __call__(self, batch, positives, following):
        self.pairs.append((batch, following))
        self.unread += 1
        self.longest = max(self.longest, self.unread)
        self._value = np.full(3, next(self.losses), dtype=np.float32)
        return self

    def to(self, device):
        assert device == "cpu", "on its way before the next step"
        return SimpleNamespace(numpy=lambda value=self._value: self._read(value))

    def _read(self, value):
        self.unread -= 1
        return value


def trainer_of(step):
    nothing = dict.fromkeys(("folder", "model", "description", "average", "samples", "pool", "evaluate"))
    nothing |= {"samples": [None], "options": SimpleNamespace(save_is_due=lambda *_: False)}
    nothing |= {
        "batch": SimpleNamespace(batch_size=1, images_per_epoch=int),
        "schedule": SimpleNamespace(total_steps=3),
    }
    return Trainer(step=step, progress=Progress(), world=ALONE, device="cuda", **nothing)


def test_one_step_runs_and_one_waits():
    device = Device(*range(10))
    trainer = trainer_of(device)
    for _ in range(10):
        trainer.train_step(iter([BATCH]))
    assert device.longest == 2
    assert trainer.metrics.values == [[loss] * 3 for loss in range(8)]


def test_a_loss_that_is_not_finite_is_seen_two_steps_later():
    trainer = trainer_of(Device(1, np.nan, 3, 4, 5))
    with pytest.raises(NotFinite) as caught:
        for _ in range(5):
            trainer.train_step(iter([BATCH]))
    assert caught.value.step == 1
    assert trainer.progress.step == 3


def with_trouble(*batches):
    yield from batches
    raise UserError("an image is broken")


def test_each_step_is_given_the_batch_of_the_next():
    first, second = (replace(BATCH, files=[name]) for name in "ab")
    device = Device(1, 2)
    trainer = trainer_of(device)
    batches = with_trouble(first, second)
    trainer.train_step(batches)
    trainer.train_step(batches)
    assert [(batch.files, following and following.files) for batch, following in device.pairs] == [
        (["a"], ["b"]),
        (["b"], None),
    ]
    with pytest.raises(UserError, match="an image is broken"):  # in its turn
        trainer.train_step(batches)
    assert trainer.progress.step == 2


@pytest.mark.parametrize(("tiles", "files"), [(1, 40), (10, 4)])
def test_three_files_may_be_unreadable_however_many_tiles_are_cut_from_them(monkeypatch, tiles, files):
    trainer = trainer_of(Device())
    monkeypatch.setattr(trainer, "_save", lambda: None)
    trainer.samples = [SimpleNamespace(path=Path(f"{file}.jpg")) for file in range(files)] * tiles
    trainer.steps_per_epoch = len(trainer.samples)
    for _ in range(3 * tiles):
        trainer._refuse_blank(1, 1, False)
    with pytest.raises(UserError, match=f"{3 * tiles + 1} of the last {3 * tiles + 1} training images cannot be read"):
        trainer._refuse_blank(1, 1, False)


@pytest.mark.parametrize(
    ("capability", "device", "eager", "told", "advised"),
    [
        ((7, 0), "cuda", False, {}, True),
        ((6, 1), "cuda", False, {}, False),
        ((8, 6), "cuda", True, {}, False),
        ((8, 6), "cpu", False, {}, False),
        ((8, 6), "cuda", False, {"amp": True}, False),
        ((8, 6), "cuda", False, {"resume": "run"}, False),
    ],
)
def test_half_precision_is_advised_where_it_is_faster(monkeypatch, capability, device, eager, told, advised):
    monkeypatch.setattr(flow.cuda, "get_device_capability", lambda _: capability)
    options = SimpleNamespace(**{"amp": False, "resume": None} | told)
    assert run._could_use_tensor_cores(options, device, eager) == advised


@pytest.mark.parametrize(
    ("figures", "why", "told"),
    [
        ({"AP": 0.25, "AP50": 0.5}, None, "AP 0.250, AP50 0.500"),
        ({"AP": -1.0, "AP50": -1.0}, "it has no objects", "AP not measured: it has no objects"),
        ({"AP": -1.0, "AP50": -1.0, "VOC_mAP": 0.5}, "none", "VOC_mAP 0.500, AP not measured: none"),
    ],
)
def test_figures_are_told_where_they_were_measured(monkeypatch, capsys, figures, why, told):
    trainer = trainer_of(Device())
    trainer.folder = Path("run")
    trainer.log = SimpleNamespace(add=lambda *_, **__: None)
    trainer.evaluate = lambda *_: SimpleNamespace(figures=lambda: figures, nothing_to_find=why, unreadable=[])
    saved = []
    monkeypatch.setattr("ssd300_vgg16.training.trainer.save_weights", lambda path, *_: saved.append(path))
    monkeypatch.setattr(trainer, "weights", dict)
    trainer._evaluate(1)
    assert capsys.readouterr().out == f"epoch 2/3: {told}\n"
    assert saved == [Path("run/best.safetensors")], "the newest is the best as long as nothing is measured"
