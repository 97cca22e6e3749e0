"""A reward model: a model of any family, and one more linear layer that makes a number of a text.

It lies beside the model's weights as `value_head.safetensors`: `weight` [1, D] over the decoder's
output behind the text's last token, and `bias` [1] where there is one. trl's `v_head` is the same
layer under the names `v_head.summary.weight` and `v_head.summary.bias`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

VALUE_HEAD_FILE = "value_head.safetensors"
_TRL = "v_head.summary."


def load_value_head(folder: str, width: int) -> torch.nn.Linear:
    """The layer of a reward model whose decoder is `width` wide, float32.

    Raises ValueError where there is none, or where it is of another width.
    """
    path = Path(folder) / VALUE_HEAD_FILE
    try:
        found = {name.removeprefix(_TRL): weight for name, weight in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} is no reward model: {path.name} cannot be read.") from error
    if found.keys() - {"bias"} != {"weight"} or found["weight"].shape != (1, width):
        shapes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in found.items())
        raise ValueError(f"{path} must hold a weight of shape [1, {width}]; it holds {shapes}.")
    head = torch.nn.Linear(width, 1, bias="bias" in found)
    head.load_state_dict({name: weight.float() for name, weight in found.items()})
    return head.requires_grad_(False)
