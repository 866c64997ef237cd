"""A linear layer on few rows, on this CPU: `rows @ weight.T` (torch's) against `weight @ rows.T` in four blocks.

    python examples/benchmarks/linear.py

The layers are those of BLIP-base's decoder; each product reads other weights than the one before, as a decoder does.
`FEW_ROWS` in hfvlm/nn/linear.py is where that is worth while.
"""

import itertools

import torch
from timing import alternate


def turned(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, blocks: int = 4) -> torch.Tensor:
    outputs, inputs = weight.shape
    columns = rows.t().expand(blocks, -1, -1)
    columns = torch.baddbmm(bias.view(blocks, -1, 1), weight.view(blocks, -1, inputs), columns)
    return columns.view(outputs, -1).t().contiguous()


@torch.inference_mode()
def main() -> None:
    print("| dtype | weight | rows | rows @ weight.T us | weight @ rows.T us | ratio |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in ((768, 768), (2304, 768), (3072, 768), (768, 3072), (30524, 768)):
            count = 1 + int(6e7 / (outputs * inputs * dtype.itemsize))  # more than a cache holds
            weights = itertools.cycle([torch.randn(outputs, inputs, dtype=dtype) for _ in range(count)])
            bias = torch.randn(outputs, dtype=dtype)
            for count in (1, 2, 3, 5, 8, 16, 24, 32):
                rows = torch.randn(count, inputs, dtype=dtype)
                calls = {
                    "usual": lambda x=rows, w=weights, b=bias: torch.nn.functional.linear(x, next(w), b),
                    "other": lambda x=rows, w=weights, b=bias: turned(x, next(w), b),
                }
                usual, other = (1e6 * seconds for seconds in alternate(calls, 40).values())
                name = str(dtype).removeprefix("torch.")
                print(f"| {name} | {outputs}x{inputs} | {count} | {usual:.0f} | {other:.0f} | {usual / other:.2f} |")


if __name__ == "__main__":
    main()
