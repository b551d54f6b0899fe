"""Several processes for one training, as `accelerate launch -m maquette train nano ...` starts them."""

from __future__ import annotations

import os
from typing import Any

from maquette.errors import UserError


def find_accelerator(device: str) -> Any:
    """The `accelerate.Accelerator` of this process, or None where it runs alone.

    `device` is "auto", "cpu" or "cuda". UserError where a launcher started several processes and accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError:
        raise UserError(
            "several processes were started, and accelerate, which connects them, is not installed: "
            "pip install 'maquette[train]', or start one process"
        ) from None
    # Steps of single views have no cameras, and controllers are dropped: not every step uses all parameters.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[unused])
