"""Write tests/golden/weight_files/torch<version>/ with the PyTorch of this Python; only for changing these files.

The tests need the files, not PyTorch. They were written by 1.12 and 2.6, once each:
    python tests/helpers/make_torch_files.py
"""

import argparse
from collections import OrderedDict

import numpy as np
import torch
from places import GOLDEN


def counted(*shape, dtype=torch.float32):
    """Quarters from 0.25 on, which every type of number holds exactly (rounded for integers)."""
    count = int(np.prod(shape))
    return (torch.arange(1, count + 1, dtype=torch.float32) / 4).reshape(shape).to(dtype)


def network():
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 4, 3), norm=torch.nn.BatchNorm2d(4)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(counted(*parameter.shape))
    return model


def checkpoint(model):
    """As training scripts save them: the network among all else."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    model.load_state_dict(before)
    return {
        "iteration": 7,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "model_ema": {**model.state_dict(), "updates": torch.tensor(3)},
        "model": model.state_dict(),
        "args": argparse.Namespace(lr=0.5, device=torch.device("cpu"), dtype=torch.float16, size=torch.Size([3, 4])),
        "best": np.float64(0.25),
        "history": [0.5, None, True, 2**40, -1, "text"],
    }


def mixed():
    """Every type, and every way in which a tensor can show the numbers of a storage."""
    base = counted(4, 6)
    parameter = torch.nn.Parameter(counted(2, 3))
    parameter.note = "kept with the parameter by newer versions"
    tensors = {
        "parameter": parameter,
        "transposed": base.t(),
        "rows": base[1:3],
        "every_second": base[:, 1::2],
        "whole": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "bool": counted(6).long() % 2 == 0,
    }
    types = "float64 float16 bfloat16 int64 int32 int16 int8 uint8"
    tensors |= {name: counted(2, 8, dtype=getattr(torch, name)) for name in types.split()}
    return {"state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())}


def main():
    version = ".".join(torch.__version__.split(".")[:2])
    folder = GOLDEN / "weight_files" / f"torch{version}"
    folder.mkdir(parents=True, exist_ok=True)
    model = network()
    saved = {"plain": model.state_dict(), "checkpoint": checkpoint(model), "mixed": mixed()}
    for name, data in saved.items():
        torch.save(data, folder / f"{name}_zip.pth")
        torch.save(data, folder / f"{name}_stream.pth", _use_new_zipfile_serialization=False)
    torch.save(model, folder / "module_zip.pth")
    torch.jit.script(torch.nn.ReLU()).save(str(folder / "script_zip.pth"))
    for name, tensors in (("network", saved["plain"]), ("mixed", saved["mixed"]["state_dict"])):
        arrays = {
            key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
            for key, tensor in tensors.items()
        }
        np.savez_compressed(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
