"""Named sets of training options. What the user gives goes first, then the preset, then the parser's defaults."""

# What --pretrained loads, by model; and what VGG16 starts from otherwise.
TRAINED_DETECTOR = {"ssd300_vgg16": "ssd300_vgg16_coco", "ssd512_vgg16": "ssd512_coco_lufficc"}
TRAINING_BACKBONE = "vgg16_amdegroot"

# Biases as in the authors' Caffe model: twice the learning rate, no decay. All of VGG16 learns.
_PAPER = {
    "lr": 1e-3,
    "weights_backbone": "vgg16_reducedfc",
    "trainable_backbone_layers": 5,
    "bias_lr_factor": 2.0,
    "bias_wd": 0.0,
}
_PAPER_COCO = {"iterations": 240_000, "lr_steps": [160_000, 200_000], "eval_every": 5}
_PAPER_VOC = {"dataset": "voc", "iterations": 120_000, "lr_steps": [80_000, 100_000], "eval_every": 10}

PRESETS = {
    "coco": {
        "help": "the recipe behind 25.1 box AP: 120 epochs, batch 32, SGD, lr 0.002 x batch / 32, steps 80 and 110",
        "options": {},
    },
    "coco300": {
        "help": "the paper's SSD300 on COCO (section 3.4): 240k iterations, batch 32, lr 1e-3, steps 160k and 200k",
        "options": {**_PAPER, **_PAPER_COCO},
    },
    "coco512": {
        "help": "the paper's SSD512 on COCO: the same",
        "options": {**_PAPER, **_PAPER_COCO, "model": "ssd512_vgg16"},
    },
    "voc300": {
        "help": "the paper's SSD300 on VOC07+12 (section 3.1): 120k iterations, batch 32, lr 1e-3, steps 80k and 100k",
        "options": {**_PAPER, **_PAPER_VOC},
    },
    "voc512": {
        "help": "the paper's SSD512 on VOC07+12: the same",
        "options": {**_PAPER, **_PAPER_VOC, "model": "ssd512_vgg16"},
    },
    "narrow": {
        "help": "an eighth of the channels, AdamW, small batches: for small data sets and machines without a GPU",
        "options": {
            "width": 0.125,
            "optimizer": "adamw",
            "lr": 1e-3,
            "batch_size": 4,
            "epochs": 2,
            "lr_scheduler": "cosine",
            "warmup_steps": 20,
            "data_augmentation": "hflip",
            "print_freq": 25,
        },
    },
}
