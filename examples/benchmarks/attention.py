"""Where scaled_dot_product_attention wins over two plain matrix products on this CPU, and where it loses.

    python examples/benchmarks/attention.py

A row is one cross-attention of a decode step of BLIP-base (12 heads, 577 image tokens): `queries` is beams x tokens
of an image. The ratio is sdpa's median time over the products'; `CPU_MATMUL_QUERIES` in hfvlm/nn/attention.py is
where it crosses 1.
"""

from types import SimpleNamespace

import torch
from timing import alternate

from hfvlm.nn.attention import matmul_attention


@torch.inference_mode()
def main() -> None:
    module = SimpleNamespace(training=False)
    print("| dtype | images | queries | sdpa us | products us | sdpa / products |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for images in (1, 8):
            key, value = torch.randn(2, images, 12, 577, 64, dtype=dtype).unbind(0)
            for queries in (1, 2, 3, 4, 5, 8, 12, 16, 24, 32):
                query = torch.randn(images, 12, queries, 64, dtype=dtype)
                calls = {
                    "sdpa": lambda q=query, k=key, v=value: torch.nn.functional.scaled_dot_product_attention(q, k, v),
                    "products": lambda q=query, k=key, v=value: matmul_attention(module, q, k, v, None),
                }
                sdpa, products = (1e6 * seconds for seconds in alternate(calls, 60).values())
                name = str(dtype).removeprefix("torch.")
                print(f"| {name} | {images} | {queries} | {sdpa:.0f} | {products:.0f} | {sdpa / products:.2f} |")


if __name__ == "__main__":
    main()
