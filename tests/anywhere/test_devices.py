"""A device that cannot be used is named, with the ones that can.

Tried: `mps` (Apple's GPUs), `tpu`, `xpu`, digits of another script, a line end, CUDA where there is none.
Was right before: CUDA where there is none, and a number that no CUDA device has. Was wrong: `mps` and any other name
ended in a regular expression, or, given to a `vae` command, in an error of PyTorch.
"""

import pytest
from helpers.parameters import parse

from vae.compute import devices
from vae.config.errors import InputError


@pytest.mark.parametrize("name", ["mps", "tpu", "xpu:0", "cuda:٣", "cpu\n"])
def test_an_unsupported_device_is_named_with_what_is_supported(name: str) -> None:
    for refused in (lambda: parse({"train.device": name}), lambda: devices.named(name)):
        with pytest.raises(InputError, match=r"is not supported.*use auto, cpu, cuda or cuda:1") as error:
            refused()
        assert ascii(name)[1:-1] in ascii(str(error.value)).replace("\\\\", "\\")
        assert ("Apple's GPUs lack float64" in str(error.value)) == (name == "mps")
