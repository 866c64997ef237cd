"""The nearest of many vectors, exactly: a matrix product, some rows at a time."""

import torch


def nearest(
    queries: torch.Tensor, rows: torch.Tensor, top_k: int, chunk_size: int = 65_536
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with the largest inner product with each query, best first.

    Args:
        queries: `[q, dim]`.
        rows: `[n, dim]`, in any floating dtype: they are multiplied in float32.
        top_k: how many a query; at most `n` come back.
        chunk_size: rows that are converted and multiplied at a time.

    Returns:
        scores and row numbers, both `[q, min(top_k, n)]`; equal scores are in no particular order.

    Raises:
        ValueError: `top_k` below 1, or vectors of different width.
    """
    check_search(queries, rows.shape, top_k)
    queries = queries.to(rows.device, torch.float32)
    best = torch.empty(len(queries), 0, device=rows.device)
    found = torch.empty(len(queries), 0, dtype=torch.long, device=rows.device)
    for start in range(0, len(rows), chunk_size):
        scores = queries @ rows[start : start + chunk_size].to(torch.float32).t()
        scores, numbers = scores.topk(min(top_k, scores.shape[1]))
        best, found = torch.cat([best, scores], dim=1), torch.cat([found, numbers + start], dim=1)
        best, order = best.topk(min(top_k, best.shape[1]))
        found = found.gather(1, order)
    return best, found


def check_search(queries: torch.Tensor, shape: tuple[int, int], top_k: int) -> None:
    """Refuses what cannot be searched for among vectors of this shape.

    Raises:
        ValueError: `top_k` below 1, or vectors of different width.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if queries.ndim != 2 or queries.shape[1] != shape[1]:
        raise ValueError(f"queries {list(queries.shape)} must be [q, {shape[1]}], of the rows' width")
