"""The precision that a model runs fastest in on a device."""

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices natively, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # the oldest torch cannot tell
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return device.type == "xpu"


def choose_dtype(device: torch.device | str, name: str = "auto") -> torch.dtype:
    """The dtype to load a model in.

    Args:
        device: where the model will run.
        name: "fp32", "bf16", or "auto": bf16 where the device computes it natively.
    """
    if name == "auto":
        name = "bf16" if computes_bf16(torch.device(device)) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
