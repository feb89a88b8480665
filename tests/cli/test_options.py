"""Options of the command lines: defaults, presets, and one clear answer to all that is wrong, before data is read."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_data import environment

from ssd300_vgg16 import evaluate, infer, train
from ssd300_vgg16.cli import command_line, train_options
from ssd300_vgg16.cli.train_parser import build_parser
from ssd300_vgg16.data import formats as data_source
from ssd300_vgg16.data.formats import DataSource
from ssd300_vgg16.data.workers import workers_for
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.training.config import OptimizerConfig, refuse_compiled
from ssd300_vgg16.weights.published import PUBLISHED

# What is set of the options; all others are None or False.
RECIPE = {
    "preset": "coco",
    "dataset": "auto",
    "epochs": 120,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 0.002,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_scheduler": "multistep",
    "lr_steps": (80, 110),
    "lr_gamma": 0.1,
    "warmup_steps": 1000,
    "data_augmentation": "ssd",
    "print_freq": 20,
    "eval_every": 1,
    "seed": 0,
    "accumulate": 1,
    "bias_lr_factor": 1.0,
    "trainable_backbone_layers": 4,
    "weights_backbone": "vgg16_amdegroot",
    "save_every": "10m",
    "keep": 2,
    "restarts": 3,
}
NARROW = {
    "width": 0.125,
    "optimizer": "adamw",
    "lr": 1e-3,
    "batch_size": 4,
    "epochs": None,
    "iterations": 1500,
    "lr_scheduler": "cosine",
    "warmup_steps": 100,
    "clip_norm": 5.0,
    "data_augmentation": "hflip",
    "print_freq": 25,
    "lr_steps": (1000, 1375),
    "weights_backbone": "none",
    "trainable_backbone_layers": 5,
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*arguments):
    return train_options.parse([str(argument) for argument in arguments])


def with_data(*arguments):
    return parse("--data-path", "somewhere", *arguments)


def chosen(options, names):
    return {name: getattr(options, name) for name in names}


def set_of(values):
    """Those of the values that are set."""
    return {name: value for name, value in values.items() if value is not None and value is not False}


def assert_set(options, **expected):
    """Whether nothing else is set than the recipe, with these changes."""
    assert set_of(vars(replace(options, notices=None))) == set_of(RECIPE | expected)


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment(), timeout=300)


def test_the_defaults_are_the_published_recipe():
    options = with_data()
    assert_set(options, data_path="somewhere")
    assert options.notices == ()


@pytest.mark.parametrize(("batch", "rate"), [(32, 0.002), (4, 0.00025), (256, 0.016), (1, 0.0000625)])
def test_the_learning_rate_goes_with_the_batch(batch, rate):
    assert with_data("-b", batch).lr == pytest.approx(rate)
    assert with_data("-b", batch, "--lr", 0.5).lr == 0.5


def test_the_narrow_preset():
    assert_set(with_data("--preset", "narrow"), **NARROW, preset="narrow", data_path="somewhere")


def test_options_go_before_the_preset():
    given = ("--width", 0.5, "--lr", 0.1, "-b", 2, "--lr-scheduler", "multistep", "--optimizer", "sgd", "--epochs", 120)
    expected = {"width": 0.5, "lr": 0.1, "batch_size": 2, "lr_scheduler": "multistep", "optimizer": "sgd"}
    for arguments in ((*given, "--preset", "narrow"), ("--preset", "narrow", *given)):
        options = with_data(*arguments)
        assert chosen(options, expected) == expected
        assert (options.epochs, options.warmup_steps) == (120, 100)


def test_the_model_zoos_command_goes_on_working(tmp_path):
    (tmp_path / "weights").touch()
    zoo = (
        "--data-path data/coco --dataset coco --model ssd300_vgg16 --device cuda --batch-size 4 --epochs 26 "
        "--workers 4 --lr 0.01 --momentum 0.8 --wd 1e-4 --lr-scheduler multisteplr --lr-steps 16 22 --lr-gamma 0.2 "
        "--print-freq 50 --output-dir out --load weights --num_classes 91 --data-augmentation hflip --test-only"
    )
    data = {"data_path": "data/coco", "dataset": "coco", "workers": 4, "batch_size": 4, "data_augmentation": "hflip"}
    network = {"model": "ssd300_vgg16", "device": "cuda", "num_classes": 91, "load": "weights", "test_only": True}
    schedule = {"epochs": 26, "lr": 0.01, "lr_steps": (16, 22), "lr_gamma": 0.2, "print_freq": 50}
    update = {"momentum": 0.8, "weight_decay": 1e-4, "weights_backbone": "none", "output_dir": "out"}
    assert_set(parse(*zoo.split()), **data, **network, **schedule, **update)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-b", "4", "-j", "2"], {"batch_size": 4, "workers": 2}),
        (["--weight-decay", "0.1"], {"weight_decay": 0.1}),
        (["--num-classes", "7"], {"num_classes": 7}),
        (["--lr-scheduler", "cosineannealinglr"], {"lr_scheduler": "cosine"}),
        (["--lr-steps", "5"], {"lr_steps": (5,)}),
        (["-j", "0", "--wd", "0", "--momentum", "0", "--warmup-steps", "0"], {"workers": 0, "weight_decay": 0.0}),
        (["--save-every", "500"], {"save_every": "500"}),
        (["--ema"], {"ema": 0.9998}),
        (["--ema", "0", "--clip-norm", "1e-3", "--bias-wd", "0"], {"ema": 0.0, "clip_norm": 1e-3, "bias_wd": 0.0}),
        (["--trainable-backbone-layers", "0"], {"trainable_backbone_layers": 0}),
        (["-b", "3", "--accumulate", "3", "--keep", "1", "--restarts", "0"], {"accumulate": 3, "keep": 1}),
        (["--eager"], {"eager": True}),
        (["--no-eager", "--amp"], {"eager": False, "amp": True}),
        (["--num_classes", "2", "--seed", str(2**63 - 1)], {"num_classes": 2, "seed": 2**63 - 1}),
    ],
)
def test_other_names_and_bounds(arguments, expected):
    assert chosen(with_data(*arguments), expected) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epochs", "0"], "--epochs: 0 is not a whole number from 1 up"),
        (["-b", "0"], "-b/--batch-size: 0 is not a whole number from 1 up"),
        (["--lr", "0"], "--lr: 0 is not a number above 0"),
        (["--lr", "nan"], "--lr: nan is not a number above 0"),
        (["--lr", "inf"], "--lr: inf is not a number above 0"),
        (["--momentum", "1"], "--momentum: 1 is not a number from 0 up to, but not including, 1"),
        (["--weight-decay", "-1"], "argument --wd: -1 is not a number from 0 up"),  # an option's first name
        (["--num-classes", "x"], "argument --num_classes: "),
        (["--lr-scheduler", "step"], "--lr-scheduler: step is neither multistep nor cosine"),
        (["--lr-steps", "0"], "--lr-steps"),
        (["--lr-gamma", "-0.1"], "--lr-gamma"),
        (["--warmup-steps", "-1"], "--warmup-steps: -1 is not a whole number from 0 up"),
        (["--optimizer", "adam"], "--optimizer: invalid choice: 'adam'"),
        (["--preset", "tiny"], "--preset: invalid choice: 'tiny'"),
        (["--model", "ssd1024_vgg16"], "--model: invalid choice"),
        (["--dataset", "lvis"], "--dataset: invalid choice"),
        (["--background-images", "-0.1"], "--background-images: -0.1 is not a number from 0 up"),
        (["--background-images", "nan"], "--background-images: nan is not a number from 0 up"),
        (["--data-augmentation", "mosaic"], "--data-augmentation: invalid choice"),
        (["--width", "0"], "--width: 0 is not a number above 0"),
        (["-j", "-1"], "-j/--workers: -1 is not a whole number from 0 up"),
        (["--print-freq", "0"], "--print-freq"),
        (["--eval-every", "0"], "--eval-every"),
        (["--seed", "-1"], "--seed"),
        (["--save-every", "0"], "--save-every: 0 is neither a number of steps (500) nor of minutes (10m)"),
        (["--save-every", "m"], "--save-every: m is neither"),
        (["--save-every", "1.5m"], "--save-every: 1.5m is neither"),
        (["--save-every", "10s"], "--save-every: 10s is neither"),
        (["--keep", "0"], "--keep: 0 is not a whole number from 1 up"),
        (["--restarts", "-1"], "--restarts: -1 is not a whole number from 0 up"),
        (["--accumulate", "0"], "--accumulate: 0 is not a whole number from 1 up"),
        (["--clip-norm", "0"], "--clip-norm: 0 is not a number above 0"),
        (["--bias-lr-factor", "0"], "--bias-lr-factor: 0 is not a number above 0"),
        (["--bias-wd", "-1"], "--bias-wd: -1 is not a number from 0 up"),
        (["--ema", "1"], "--ema: 1 is not a number from 0 up to, but not including, 1"),
        (["--trainable-backbone-layers", "6"], "--trainable-backbone-layers: invalid choice: 6"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--replay", "replay-step-7.safetensors"], "--replay: it is gone; a run now leaves not-finite-step-N.jpg"),
        (["photo.jpg"], "unrecognized arguments: photo.jpg"),
    ],
)
def test_a_wrong_option_is_named(capsys, arguments, named):
    with pytest.raises(SystemExit) as caught:
        with_data(*arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("train.sh: error: ") and named in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--num_classes", "1"], "--num_classes 1: it counts the background"),
        (["--lr-steps", "110", "80"], r"--lr-steps \[110, 80\]: they have to rise"),
        (["--lr-steps", "80", "80"], r"--lr-steps \[80, 80\]: they have to rise"),
        (["--test-only"], "--test-only needs weights: give --load W, --pretrained or --resume RUN"),
        (["--load", "x.pth"], f"--load x.pth: there is no such file or folder, .*{', '.join(PUBLISHED)}"),
        (["--weights-backbone", "no"], f"--weights-backbone no: there is no such file .*{', '.join(PUBLISHED)}"),
        (["--resume", "runs/nothing"], "--resume runs/nothing: there is no such file or folder"),
        (["--test-only", "--resume", "nothing"], "--resume nothing: there is no such file or folder"),
        (["--pretrained", "--load", "vgg16_reducedfc"], "--load and --pretrained exclude each other"),
        (
            ["--pretrained", "--weights-backbone", "vgg16_reducedfc"],
            "--pretrained and --weights-backbone exclude each other",
        ),
        (
            ["--pretrained", "--model", "ssd512_vgg16_highres"],
            "--pretrained: there are no published weights of ssd512_vgg16_highres",
        ),
        (["--iterations", "90", "--epochs", "9"], "--epochs and --iterations exclude each other"),
        (["--iterations", "300", "--warmup-steps", "300"], "--warmup-steps 300: the training has 300 steps in all"),
        (["--preset", "narrow", "--warmup-steps", "2000"], "--warmup-steps 2000: .* 1500 steps .* raise --iterations"),
        (["--load", ""], "--load: it is empty"),
        (["--load", "none"], "--load none: there is no such file"),
        (["--weights-backbone", "", "--width", "1"], "--weights-backbone: it is empty"),
        (["--seed", str(2**63)], f"--seed {2**63}: the largest is {2**63 - 1}"),
        (["-b", "4", "--accumulate", "5"], "--accumulate 5: there are only 4 images in a step"),
        (["--amp", "--eager"], "--amp and --eager exclude each other: half precision is for the compiled step"),
        (["--amp", "--device", "cpu"], "--amp and --device cpu exclude each other: half precision is for GPUs"),
        (["--output-dir", "run"], r"--output-dir run already holds a run: .*--resume run\), or name another"),
        (["--train-annotations", "train.json"], "--train-annotations needs --train-images with it"),
        (["--val-images", "val"], "--val-images needs --val-annotations with it"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, arguments, problem):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "options.json").touch()
    with pytest.raises(UserError) as caught:
        with_data(*arguments)
    assert re.match(problem, str(caught.value))


@pytest.mark.parametrize(
    ("text", "steps", "seconds", "due"),
    [("500", 499, 1e9, False), ("500", 500, 0, True), ("10m", 10**9, 599.9, False), ("10m", 0, 600, True)],
)
def test_checkpoints_are_due_after_so_many_steps_or_minutes(text, steps, seconds, due):
    assert with_data("--save-every", text).save_is_due(steps, seconds) == due


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("vgg16_amdegroot", None, 4)),
        (["--dataset", "voc"], ("vgg16_amdegroot", None, 4)),
        (["--dataset", "shapes"], ("none", None, 5)),
        (["--width", "0.5"], ("none", None, 5)),
        (["--weights-backbone", "none"], ("none", None, 5)),
        (["--weights-backbone", "vgg16_imagenet", "--width", "1"], ("vgg16_imagenet", None, 4)),
        (["--pretrained"], ("none", "ssd300_vgg16_coco", 4)),
        (["--pretrained", "--model", "ssd512_vgg16"], ("none", "ssd512_coco_lufficc", 4)),
        (["--load", "ssd300_voc_lufficc"], ("none", "ssd300_voc_lufficc", 4)),
        (["--load", "ssd300_voc_lufficc", "--trainable-backbone-layers", 5], ("none", "ssd300_voc_lufficc", 5)),
        (["--preset", "voc512"], ("vgg16_reducedfc", None, 5)),
        (["--preset", "voc300", "--width", 0.5], ("none", None, 5)),  # the preset's could not fit
        (["--preset", "voc300", "--width", 0.5, "--weights-backbone", "vgg16_imagenet"], ("vgg16_imagenet", None, 5)),
    ],
)
def test_where_weights_come_from(arguments, expected):
    options = with_data(*arguments)
    assert (options.weights_backbone, options.load, options.trainable_backbone_layers) == expected


@pytest.mark.parametrize(
    ("preset", "model", "dataset", "iterations", "steps"),
    [
        ("voc300", None, "voc", 120_000, (80_000, 100_000)),
        ("voc512", "ssd512_vgg16", "voc", 120_000, (80_000, 100_000)),
        ("coco300", None, "auto", 240_000, (160_000, 200_000)),
        ("coco512", "ssd512_vgg16", "auto", 240_000, (160_000, 200_000)),
    ],
)
def test_the_papers_runs(preset, model, dataset, iterations, steps):
    options = with_data("--preset", preset)
    assert (options.model, options.dataset) == (model, dataset)
    assert (options.iterations, options.epochs, options.lr_steps) == (iterations, None, steps)
    assert (options.lr, options.batch_size, options.momentum, options.weight_decay) == (1e-3, 32, 0.9, 5e-4)
    assert (options.bias_lr_factor, options.bias_wd, options.background_images) == (2, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "length", "steps"),
    [
        ([], (None, 120), (80, 110)),
        (["--epochs", 26], (None, 26), (17, 23)),
        (["--epochs", 1], (None, 1), (1, 2)),
        (["--epochs", 3], (None, 3), (2, 3)),
        (["--epochs", 26, "--lr-steps", 16, 22], (None, 26), (16, 22)),
        (["--iterations", 60_000], (60_000, None), (40_000, 55_000)),
        (["--preset", "voc300", "--iterations", 1200], (1200, None), (800, 1100)),
        (["--preset", "voc300", "--epochs", 12], (None, 12), (8, 11)),
        (["--preset", "narrow", "--iterations", 12], (12, None), (8, 11)),
    ],
)
def test_the_rate_falls_as_far_into_any_length(arguments, length, steps):
    options = with_data(*arguments)
    assert (options.iterations, options.epochs) == length
    assert options.lr_steps == steps
    assert options.notices == ()


@pytest.mark.parametrize(
    ("arguments", "warmup"),
    [
        (["--iterations", 300, "--warmup-steps", 299], 299),
        (["--iterations", 300], 1000),
        (["--preset", "narrow", "--iterations", 5], 100),
        (["--epochs", 1, "--warmup-steps", 10**6], 10**6),
    ],
)
def test_a_warm_up_may_be_long_by_default_or_where_the_length_is_not_known_yet(arguments, warmup):
    assert with_data(*arguments).warmup_steps == warmup


def test_milestones_that_are_not_reached_are_told():
    notices = with_data("--epochs", 26, "--lr-steps", 16, 26, 40).notices
    assert notices == ("--lr-steps 26 40: not reached within 26, the rate is not lowered there.",)
    assert with_data("--epochs", 26, "--lr-steps", 40, "--lr-scheduler", "cosine").notices == ()


@pytest.mark.parametrize("given", [0.1, 0, 3])
def test_the_share_of_backgrounds(tmp_path, given):
    options = with_data("--background-images", given)
    assert options.background_images == options.as_json()["background_images"] == given
    saved_run(tmp_path / "run", background_images=given)
    assert parse("--resume", "run").background_images == given


def test_a_run_of_before_goes_on_without_backgrounds(tmp_path):
    saved_run(tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "options.json").read_text())
    del kept["background_images"]
    (tmp_path / "run" / "options.json").write_text(json.dumps(kept))
    assert parse("--resume", "run").background_images == 0
    with pytest.raises(UserError, match=r"--background-images 0\.1: the run was started with 0\.0"):
        parse("--resume", "run", "--background-images", 0.1)


@pytest.mark.parametrize(("counted", "other"), [("epochs", "iterations"), ("iterations", "epochs")])
def test_a_run_that_goes_on_counts_as_it_did(tmp_path, counted, other):
    saved_run(tmp_path / "run", **{counted: 7, other: None})
    assert getattr(parse("--resume", "run", f"--{counted}", 9), counted) == 9
    with pytest.raises(UserError, match=f"--resume run: this run counts {counted}; give its length with --{counted}"):
        parse("--resume", "run", f"--{other}", 9)


def test_the_cache_that_was_is_accepted():
    assert with_data("--cache", "ram") == with_data()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -5}, "--seed: -5 is not a whole number from 0 up"),
        ({"seed": "5"}, "seed is '5', not a whole number"),
        ({"seed": None}, "seed is None, not a whole number"),
        ({"width": 1e9}, "--width: 1000000000.0 is more than 8"),
        ({"num_classes": 10**9}, "--num_classes: 1000000000 is more than 30,000"),
        ({"batch_size": 10**9}, "--batch-size: 1000000000 is more than 16,384"),
        ({"lr_steps": 5}, "lr_steps is 5, not a list"),
        ({"lr_steps": [5, "x"]}, r"lr_steps\[1\] is 'x', not a whole number"),
        ({"lr": float("nan")}, "lr is nan, not a number"),
        ({"epochs": True}, "epochs is True, not a whole number"),
        ({"optimizer": "lion"}, "--optimizer: invalid choice: 'lion'"),
        ({"data_path": ["a"]}, r"data_path is \['a'\], not a text"),
        ({"load": "x" * (2 << 20)}, "load is 'xx.*xx', not a text"),
    ],
)
def test_options_that_no_run_was_begun_with_are_refused(tmp_path, changes, said):
    saved_run(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=rf"run.*options\.json.*{said}"):
        parse("--resume", "run")


@pytest.mark.parametrize("content", ["[]", "null", "5", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "\xff"])
def test_what_are_no_options_is_refused(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "options.json").write_text(content, "latin-1")
    with pytest.raises(UserError, match=r"run: no run \(options\.json is missing or damaged: "):
        parse("--resume", "run")


def saved_run(folder, **changes):
    """A run's folder with the options of a narrow run, and what else is kept with them."""
    options = with_data("--preset", "narrow", "--seed", 7, "--print-freq", 3).as_json()
    # As a run settles them.
    options |= {"model": "ssd300_vgg16", "default_boxes": "coco", "background_images": 0.0} | changes
    options["cache"] = "ram"  # of an earlier version
    options |= {"commands": [{"step": 0, "command": "train.sh --preset narrow"}], "val_images_folder": "/data/val"}
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "last.safetensors").touch()
    return folder


@pytest.mark.parametrize("named", ["run", "run/last.safetensors"])
def test_a_resumed_run_keeps_its_options(tmp_path, named):
    once = {"workers": 31, "check": True, "pretrained": True, "replay": "of an earlier version"}
    saved_run(tmp_path / "run", output_dir="run", device="cuda", eager=True, load="weights", **once)
    options = parse("--resume", named)
    changed = NARROW | {"preset": "narrow", "seed": 7, "print_freq": 3, "resume": named, "load": "weights"}
    changed |= {
        "device": "cuda",
        "eager": True,
        "model": "ssd300_vgg16",
        "default_boxes": "coco",
        "background_images": 0.0,
    }
    assert_set(options, **changed, data_path="somewhere")
    assert options.notices == ()


def test_places_of_a_run_are_kept_for_other_folders(tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "data" / "coco").mkdir(parents=True)
    saved_run(tmp_path / "run")
    assert replace(with_data(), data_path=None).as_json()["data_path"] == str(tmp_path / "data" / "coco")
    again = parse("--resume", "run", "--data-path", "somewhere")
    assert again.notices == (), "it is the same place"
    monkeypatch.chdir("data")
    assert parse("--resume", "../run").data_path == str(tmp_path / "somewhere")


def test_options_go_before_those_of_the_resumed_run(tmp_path):
    saved_run(tmp_path / "run")
    given = ("--iterations", 9000, "--data-path", "elsewhere", "--save-every", 7, "--ema", "--lr", 1e-3, "--seed", 7)
    options = parse("--resume", "run", *given, "--device", "cpu", "-j", 3, "--eager")
    expected = {"iterations": 9000, "data_path": "elsewhere", "device": "cpu", "workers": 3, "seed": 7, "batch_size": 4}
    assert chosen(options, expected) == expected
    assert sorted(options.notices) == [
        "Going on with --data-path elsewhere instead of somewhere.",
        "Going on with --device cpu instead of unset.",
        "Going on with --eager True instead of unset.",
        "Going on with --ema 0.9998 instead of unset.",
        "Going on with --iterations 9000 instead of 1500.",
        "Going on with --save-every 7 instead of 10m.",
    ]


CHANGED = {
    "preset": ("--preset", "coco", "narrow"),
    "model": ("--model", "ssd512_vgg16", "ssd300_vgg16"),
    "default_boxes": ("--default-boxes", "voc", "coco"),
    "width": ("--width", "0.5", "0.125"),
    "num_classes": ("--num_classes", "9", "None"),
    "optimizer": ("--optimizer", "sgd", "adamw"),
    "batch_size": ("--batch-size", "8", "4"),
    "seed": ("--seed", "8", "7"),
    "trainable_backbone_layers": ("--trainable-backbone-layers", "3", "5"),
    "background_images": ("--background-images", "0.3", "0.0"),
}


@pytest.mark.parametrize("name", sorted({*train_options.FIXED, *CHANGED}))
def test_what_makes_a_run_what_it_is_cannot_change(tmp_path, name):
    saved_run(tmp_path / "run")
    option, given, kept = CHANGED[name]
    with pytest.raises(UserError) as caught:
        parse("--resume", "run", option, given)
    expected = rf"{option} {given}: the run was started with {kept} \(with --load instead of --resume, .*\)"
    assert re.fullmatch(expected, str(caught.value))


def test_all_problems_come_in_one_message(tmp_path):
    saved_run(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        parse("--resume", "run", "--seed", 8, "--width", 0.5, "--num_classes", 1, "--lr-steps", 9, 3, "--load", "a")
    for named in ("--seed 8: the run was started with 7", "--width 0.5: ", "--num_classes 1: ", "[9, 3]", "--load a"):
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--load", "run"], "--load and --resume exclude each other"),
        (["--output-dir", "other"], "--output-dir and --resume exclude each other"),
    ],
)
def test_what_a_resumed_run_cannot_change(tmp_path, arguments, problem):
    saved_run(tmp_path / "run")
    with pytest.raises(UserError, match=problem):
        parse("--resume", "run", *arguments)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ([], NARROW | {"preset": "narrow"}),
        (["--weights-backbone", "none"], NARROW | {"preset": "narrow"}),
        (["--width", 0.5, "--seed", 3], NARROW | {"preset": "narrow", "width": 0.5, "seed": 3}),
        (["--preset", "coco"], {"weights_backbone": "none", "trainable_backbone_layers": 5}),
    ],
)
def test_without_data_generated_shapes_are_learned(capsys, arguments, changed):
    options = parse(*arguments)
    assert_set(options, **changed, dataset="shapes")
    (notice,) = options.notices
    assert notice.startswith("No --data-path given and no data/coco here")
    assert f"with --preset {options.preset}" in notice
    assert capsys.readouterr().out == "", "it is for one process of several to print"


def test_with_data_nothing_is_chosen_for_the_user():
    files = ("--train-annotations", "a.json", "--train-images", "a", "--val-annotations", "b.json", "--val-images", "b")
    for arguments in (["--data-path", "somewhere"], ["--dataset", "shapes"], files):
        options = parse(*arguments)
        assert (options.preset, options.notices) == ("coco", ())


def test_data_in_its_usual_place_is_used(tmp_path):
    (tmp_path / "data" / "coco").mkdir(parents=True)
    options = parse()
    assert (options.dataset, options.preset) == ("auto", "coco")
    assert options.source() == DataSource()


def test_the_data_of_each_split_can_be_named():
    options = with_data("--train-annotations", "t.json", "--train-images", "t", "--strict-data")
    source = options.source()
    assert (source.kind, str(source.path), source.val, source.strict) == ("auto", "somewhere", None, True)
    assert [str(path) for path in source.train] == ["t.json", "t"]
    assert source.locate("train") == source.train


def test_shapes_are_generated_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(data_source, "SHAPES_IMAGES", {"train_images": 2, "val_images": 1})
    for options, folder in ((parse(), "data/shapes"), (parse("--dataset", "shapes", "--data-path", "here"), "here")):
        source = options.source()
        train_set = source.load("train")
        val_set = source.load("val", train_set.categories)
        assert (len(train_set.samples), len(val_set.samples)) == (2, 1)
        assert val_set.samples[0].path == Path(folder, "val", "000001.jpg")


def help_of(module, option, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main([option])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("module", [infer, evaluate])
def test_help_is_whole(module, capsys):
    text = help_of(module, "--help", capsys)
    script = {infer: "infer.sh", evaluate: "eval.sh"}[module]
    assert text.startswith(f"usage: {script} ") and f"bash {script}" in text
    assert "%(" not in text and "None" not in text
    for option in ("--device", "--output-dir", *{infer: ["PATH"], evaluate: ["--weights"]}[module]):
        assert option in text


def test_the_help_of_a_training_fits_a_screen_and_says_where_the_rest_is(capsys):
    text = help_of(train, "--help", capsys)
    assert help_of(train, "-h", capsys) == text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100
    assert "bash train.sh --help-all" in text
    parser = build_parser()
    named = set(re.findall(r"--[a-z-]+", text)) - {"--help-all"}
    assert named <= set(parser._option_string_actions), "an example names an option that does not exist"


def test_all_options_of_a_training_are_in_its_whole_help_by_one_name_each(capsys):
    text = help_of(train, "--help-all", capsys)
    assert "%(" not in text and "None" not in text
    for action in build_parser()._actions:
        long = [spelling for spelling in action.option_strings if spelling.startswith("--")]
        shown = action.help is not argparse.SUPPRESS
        others = [] if isinstance(action, argparse.BooleanOptionalAction) else long[1:]
        assert bool(re.search(rf"^ .*{long[0]}\b", text, re.MULTILINE)) is shown
        assert not any(re.search(rf"{other}(?![\w-])", text) for other in others)


@pytest.mark.parametrize(
    ("module", "arguments", "problem"),
    [
        ("infer", ["--score-threshold", "1"], "--score-threshold: 1 is not a number from 0 up to, but not"),
        ("infer", ["--max-detections", "0"], "--max-detections: 0 is not a whole number from 1 up"),
        ("infer", ["--tiles", "0"], "--tiles: 0 is not a whole number of pixels from 32 up"),
        ("evaluate", ["--tiles", "300", "--tile-overlap", "1"], "--tile-overlap: 1 is not a number from 0 to 0.9"),
        ("evaluate", ["-b", "0"], "-b/--batch-size: 0 is not a whole number from 1 up"),
        ("evaluate", ["--dataset", "lvis"], "--dataset: invalid choice"),
    ],
)
def test_wrong_options_of_the_others_are_named(module, arguments, problem, capsys):
    with pytest.raises(SystemExit) as caught:
        {"infer": infer, "evaluate": evaluate}[module].main(arguments)
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err


def test_wrong_options_are_answered_without_oneflow_and_data():
    code = (
        "import sys\n"
        "from ssd300_vgg16 import evaluate, infer, train\n"
        "from ssd300_vgg16.errors import UserError\n"
        "for module, arguments in ((train, ['--epochs', '0']), (train, ['--num_classes', '1']), (train, ['--help']),\n"
        "                          (infer, ['--score-threshold', '2']), (evaluate, ['-b', '0'])):\n"
        "    try:\n"
        "        module.main(arguments)\n"
        "    except (UserError, SystemExit):\n"
        "        pass\n"
        "print(sorted({'oneflow', 'matplotlib', 'pycocotools.coco'} & set(sys.modules)))"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"
    assert os.listdir() == []  # noqa: PTH208 - nothing was generated or written


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("train", ["--frobnicate"], "train.sh: error: unrecognized arguments: --frobnicate\n"),
        ("evaluate", [], f"eval.sh: no run with weights in {os.sep}.*: train first .*\n"),
    ],
)
def test_a_usage_error_has_status_2_and_no_traceback(module, arguments, message):
    process = python("-m", f"ssd300_vgg16.{module}", *arguments)
    assert process.returncode == command_line.USAGE_STATUS == 2
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines(keepends=True)[-1]
    assert last == message or re.fullmatch(message, last)


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (UserError("mend it"), 2, "train.sh: mend it\n"),
        (KeyboardInterrupt(), 130, "train.sh: interrupted\n"),
        (Stopped(signal.SIGINT), 130, "train.sh: stopped by SIGINT\n"),
        (Stopped(signal.SIGTERM), 143, "train.sh: stopped by SIGTERM\n"),
        (Stopped(signal.SIGUSR1), 138, "train.sh: stopped by SIGUSR1\n"),
        (
            OSError(28, "No space left on device", "runs/a"),
            2,
            "train.sh: runs/a: No space left on device: make room on its disk, or name another folder\n",
        ),
        (
            MemoryError(),
            1,
            "train.sh: memory is short (MemoryError): take fewer images at a time (--batch-size, and --workers where "
            "there are some), run it alone, or allow more\n",
        ),
        (None, 0, ""),
    ],
)
def test_how_a_command_line_ends(monkeypatch, capsys, raised, status, message):
    def main(arguments):
        assert arguments == ["--some", "option"]
        if raised is not None:
            raise raised
        return 0

    monkeypatch.setattr(sys, "argv", ["train.py", "--some", "option"])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        command_line.run(main, "train.sh")
    ignored = signal.signal(signal.SIGINT, handler) == signal.SIG_IGN
    assert (caught.value.code, capsys.readouterr().err) == (status, message)
    assert ignored == isinstance(raised, KeyboardInterrupt)


def test_a_bug_is_told_as_one(monkeypatch, capsys):
    def main(_):
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as caught:
        command_line.run(main, "train.sh")
    first, *trace = capsys.readouterr().err.splitlines()
    assert (caught.value.code, first) == (1, f"train.sh: {command_line.BUG}")
    assert trace[0].startswith("Traceback") and trace[-1] == "ZeroDivisionError"


def test_a_reader_that_has_gone_is_no_error():
    """As with `| head`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "ssd300_vgg16.train", "--help"]
    process = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment(), timeout=300)
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, b"")


def test_lines_appear_in_a_pipe_as_they_are_written():
    code = (
        "import sys\n"
        "from ssd300_vgg16.cli import command_line\n"
        "def main(arguments):\n"
        "    print('caf\\udce9.jpg')\n"
        "    return sys.stdin.readline() != 'seen\\n'\n"
        "command_line.run(main, 'test')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), **pipes) as process:
        assert process.stdout.readline() == "caf\\udce9.jpg\n"
        process.stdin.write("seen\n")
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, 1, 0), (2, 1, 1), (4, 1, 3), (9, 1, 8), (64, 1, 8), (64, 8, 7), (12, 4, 2), (2, 2, 0), (2, 4, 0)],
)
def test_workers_leave_a_core_to_each_training_process(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    if processes > 1:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers_for("cpu", None) == workers
    assert workers_for("cuda:0", None) == max(1, workers), "which leaves its core most of the time"
    assert workers_for("cpu", 5) == workers_for("cuda", 5) == 5


def test_resume_without_a_run_means_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no run in .*runs to go on with"):
        train_options.parse(["--resume"])
    for age, name in enumerate(("newest", "older", "oldest")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "options.json").write_text(json.dumps({"lr": 0.5, "batch_size": 7}))
        (folder / "metrics.jsonl").touch()
        os.utime(folder / "metrics.jsonl", (1e9 - age, 1e9 - age))
    options = train_options.parse(["--resume", "--epochs", "9"])
    assert (options.resume, options.batch_size, options.epochs) == ("runs/newest", 7, 9)


def test_half_precision_is_for_the_compiled_step_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the device that is taken is known later than the options
    with pytest.raises(UserError, match="--amp: half precision is for the compiled step on a GPU"):
        train.main(["--data-path", str(tmp_path / "nowhere"), "--amp"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-b", "8", "--accumulate", "3"], "--accumulate 3: a compiled step .* 8 images do not divide so"),
        (["--clip-norm", "1", "--bias-lr-factor", "2"], "--clip-norm does not go with --bias-lr-factor .* add --eager"),
        (["--clip-norm", "1", "--bias-wd", "0"], "--clip-norm does not go with .*--bias-wd .* add --eager"),
    ],
)
def test_what_a_compiled_step_cannot_do_is_refused_before_data_is_read(tmp_path, options, message):
    command = ["--data-path", str(tmp_path / "nowhere"), "--device", "cpu", *options]
    with pytest.raises(UserError, match=message):
        train.main([*command, "--no-eager"])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        train.main([*command, "--eager"])


def test_passes_are_shared_by_processes():
    config = OptimizerConfig("sgd")
    refuse_compiled(config, passes=2, batch_size=8, processes=2)
    refuse_compiled(config, passes=1, batch_size=5, processes=2)
    with pytest.raises(UserError, match="6 images over 2 processes do not divide so"):
        refuse_compiled(config, passes=2, batch_size=6, processes=2)
