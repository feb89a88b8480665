"""The configuration of a run in words, from its options.json and environment.json."""

AUGMENTATIONS = {
    "ssd": "zoom-out, crops, mirroring and changes of colour (ssd)",
    "ssdlite": "crops and mirroring (ssdlite)",
    "hflip": "mirroring (hflip)",
    "none": "none",
}
SHARES = {1: "all", 0.5: "half", 0.25: "a quarter", 0.125: "an eighth"}


def in_words(options: dict, environment: dict) -> dict[str, str]:
    """What is trained, on what and how: by heading, a text."""
    data = environment.get("data", {})
    words = {
        "Network": _network(options),
        "Starts from": _start(options),
        "Training data": _data(data.get("train")),
        "Validation data": _data(data.get("val")),
        "Augmentation": AUGMENTATIONS.get(options["data_augmentation"], options["data_augmentation"]),
        "Length": _length(options, environment),
        "Learning rate": _learning_rate(options),
        "Update": _update(options),
        "Machine": _machine(options, environment),
        "Command": "; ".join(_command(one) for one in options.get("commands", [])),
    }
    return {heading: text for heading, text in words.items() if text}


def _network(options: dict) -> str:
    network = options["model"].removesuffix("_vgg16").upper()
    width = f"{SHARES.get(options['width'], format(options['width'], 'g'))} of the channels"
    boxes = f"default boxes for {options['default_boxes'].upper()}"
    return f"{network} with VGG16, {width}; {boxes}; {options['num_classes']} outputs, background included"


def _start(options: dict) -> str:
    backbone = options["weights_backbone"]
    trunk = f"VGG16 of {backbone}, the rest from nothing" if backbone not in (None, "none") else "nothing"
    layers = options["trainable_backbone_layers"]
    frozen = "" if layers == 5 else f"; of VGG's 5 stages the last {layers} learn" if layers else "; VGG does not learn"
    return (options["load"] or trunk) + frozen


def _data(about: dict | None) -> str:
    return f"{about['name']}: {about['images']:,} images with {about['objects']:,} objects" if about else ""


def _length(options: dict, environment: dict) -> str:
    epochs = f"{options['epochs']} epochs" if options["epochs"] else ""
    steps = f"{environment['steps']:,} steps" if "steps" in environment else ""
    passes = f", each in {options['accumulate']} passes" if options["accumulate"] > 1 else ""
    processes = environment.get("processes", 1)
    shared = f", shared by {processes} processes" if processes > 1 else ""
    return f"{', '.join(filter(None, (epochs, steps)))}, batches of {options['batch_size']} images{passes}{shared}"


def _learning_rate(options: dict) -> str:
    warmup = f"rises for {options['warmup_steps']:,} steps to " if options["warmup_steps"] else ""
    if options["lr_scheduler"] == "cosine":
        falls = "falls to 0 along a cosine"
    else:
        unit = "steps" if options["iterations"] else "epochs"
        falls = f"times {options['lr_gamma']:g} after {' and '.join(f'{at:,}' for at in options['lr_steps'])} {unit}"
    return f"{warmup}{options['lr']:g}, {falls}"


def _update(options: dict) -> str:
    momentum = f"SGD with momentum {options['momentum']:g}" if options["optimizer"] == "sgd" else "AdamW"
    parts = [momentum, f"weight decay {options['weight_decay']:g}"]
    if options["clip_norm"] is not None:
        parts.append(f"gradients no longer than {options['clip_norm']:g}")
    if options["bias_lr_factor"] != 1:
        parts.append(f"biases {options['bias_lr_factor']:g} times as fast")
    if options["bias_wd"] is not None:
        parts.append(f"weight decay of biases {options['bias_wd']:g}")
    if options["ema"] is not None:
        parts.append(f"evaluated: a moving average of the weights, {options['ema']:g}")
    return ", ".join([*parts, f"seed {options['seed']}"])


def _machine(options: dict, environment: dict) -> str:
    device = environment.get("device", "")
    hardware = environment.get("cpu" if device == "cpu" else "gpus", "")
    half = "products in half precision" if options["amp"] else ""
    oneflow = f"OneFlow {environment['oneflow']}" if "oneflow" in environment else ""
    return ", ".join(filter(None, (device, hardware, half, oneflow)))


def _command(one: dict) -> str:
    return f"after step {one['step']:,}: {one['command']}" if one["step"] else one["command"]
