"""Named sets of training options. What the user gives goes first, then the preset, then the parser's defaults."""

PRESETS = {
    "coco": {
        "help": "the recipe behind 25.1 box AP: 120 epochs, batch 32, SGD, lr 0.002 x batch / 32, steps 80 and 110",
        "options": {},
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
