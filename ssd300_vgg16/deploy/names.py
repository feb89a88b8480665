"""What the inputs and outputs of exported networks are called."""

IMAGES = "images"
OFFSETS, LOGITS = "offsets", "logits"
