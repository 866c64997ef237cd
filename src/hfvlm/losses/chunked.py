"""Sums over all pairs of queries and keys, some rows at a time: the matrix of their logits is never held.

A contrastive loss is such a sum (of what normalises the softmax, or of softplus for the sigmoid loss) minus the
logits of the matches, which need no matrix. Each sum's gradients are known when the sum is, so they are computed along
with it into two tensors of the size of the features, and the backward pass only scales them: three matrix products a
pair for the sums over rows, four where columns are normalised too (these are known only after a pass over all rows).
"""

import math
from collections.abc import Iterator

import torch


#: Exponentials up to exp(60) are summed as they are: 1e26, far from overflow for any number of rows.
REACH = 60.0


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients were computed with it: the backward pass multiplies them by its own."""

    @staticmethod
    def forward(ctx, value: torch.Tensor, gradients: tuple, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return None, None, *(None if saved is None else saved * gradient for saved in ctx.saved_tensors)


class _Products:
    """Logits `scale * queries @ keys.T` by rows, in one buffer, and the gradients of a sum over them.

    Args:
        queries: `[n, d]`.
        keys: `[m, d]`.
        scale: `[]`.
        chunk_size: rows at a time.
    """

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, chunk_size: int):
        self.inputs = queries, keys, scale
        self.queries, self.keys, self.scale = queries.detach(), keys.detach(), scale.detach()
        self.scaled = self.queries * self.scale
        self.chunk_size = max(min(chunk_size, len(queries)), 1)
        self.buffer = queries.new_empty(self.chunk_size, len(keys))
        grad = torch.is_grad_enabled()
        self.wants_queries = grad and (queries.requires_grad or scale.requires_grad)
        self.wants_keys = grad and keys.requires_grad
        self.by_query = torch.empty_like(self.queries) if self.wants_queries else None
        self.by_key = torch.zeros_like(self.keys) if self.wants_keys else None

    @property
    def wants_gradients(self) -> bool:
        return self.wants_queries or self.wants_keys

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The rows and their logits `[rows, m]`, which the next chunk overwrites."""
        for start in range(0, len(self.queries), self.chunk_size):
            rows = slice(start, min(start + self.chunk_size, len(self.queries)))
            logits = self.buffer[: rows.stop - rows.start]
            yield rows, torch.mm(self.scaled[rows], self.keys.t(), out=logits)

    def spare(self) -> torch.Tensor:
        """A second buffer of the same shape."""
        return torch.empty_like(self.buffer)

    def add(self, rows: slice, gradient: torch.Tensor) -> None:
        """Takes in the sum's gradient by the logits of a chunk, `[rows, m]`."""
        if self.wants_queries:
            torch.mm(gradient, self.keys, out=self.by_query[rows])
        if self.wants_keys:
            self.by_key.addmm_(gradient.t(), self.queries[rows])

    def finish(
        self, value: torch.Tensor, bias: torch.Tensor | None = None, by_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The value, with gradients by what it was computed of."""
        tensors, gradients = [*self.inputs], [None, None, None]
        if self.wants_queries:
            gradients[2] = (self.by_query * self.queries).sum()
            gradients[0] = self.by_query.mul_(self.scale)
        if self.wants_keys:
            gradients[1] = self.by_key.mul_(self.scale)
        if bias is not None:
            tensors, gradients = [*tensors, bias], [*gradients, by_bias]
        return _WithGradients.apply(value, tuple(gradients), *tensors)


def softplus_sum(
    queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """`sum_ij softplus(scale * queries_i . keys_j + bias)`.

    Args:
        queries: `[n, d]`.
        keys: `[m, d]`.
        scale, bias: `[]`.
        chunk_size: rows at a time.
    """
    products = _Products(queries, keys, scale, chunk_size)
    wants_bias = torch.is_grad_enabled() and bias.requires_grad
    with torch.no_grad():
        spare, value, by_bias = products.spare(), queries.new_zeros(()), queries.new_zeros(())
        for rows, logits in products.chunks():
            logits += bias
            value += torch.ops.aten.softplus.out(logits, out=spare[: len(logits)]).sum()
            if products.wants_gradients or wants_bias:
                logits.sigmoid_()
                by_bias += logits.sum()
                products.add(rows, logits)
    return products.finish(value, bias, by_bias)


def logsumexp_sum(
    queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """`sum_i weights_i * logsumexp_j(scale * queries_i . keys_j)`.

    Args:
        queries: `[n, d]`.
        keys: `[m, d]`.
        scale: `[]`.
        weights: `[n]`, constants.
        chunk_size: rows at a time.
    """
    products = _Products(queries, keys, scale, chunk_size)
    with torch.no_grad():
        value = queries.new_zeros(())
        for rows, logits in products.chunks():
            top = logits.amax(dim=1, keepdim=True)
            sums = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
            value += weights[rows] @ (sums.log() + top).squeeze(1)
            if products.wants_gradients:
                products.add(rows, logits.mul_(weights[rows, None] / sums))
    return products.finish(value)


def logsumexp_sum_both_ways(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor,
    row_weights: torch.Tensor,
    column_weights: torch.Tensor,
    chunk_size: int,
) -> torch.Tensor:
    """`logsumexp_sum` of the queries against the keys plus that of the keys against the queries.

    Args:
        queries: `[n, d]`.
        keys: `[m, d]`.
        scale: `[]`.
        row_weights, column_weights: `[n]` and `[m]`, constants.
        chunk_size: rows at a time.
    """
    products = _Products(queries, keys, scale, chunk_size)
    with torch.no_grad():
        value = _share_exponentials(products, row_weights, column_weights)
        if value is None:
            value = _apart(products, row_weights, column_weights)
    return products.finish(value)


def _share_exponentials(
    products: _Products, row_weights: torch.Tensor, column_weights: torch.Tensor
) -> torch.Tensor | None:
    """Both ways with one exponential a pair and without a search for maxima; None where that would lose precision.

    No logit exceeds `scale` times the two greatest lengths (`scale` itself, for features of length 1). So all logits,
    less what that bound has beyond `REACH`, can be exponentiated as they are, for rows and columns alike. What falls
    below the range of numbers then is nothing beside its row's and column's sum, as long as each sum is at least
    exp(-REACH): of features of length 1 at a scale of 100, as long as each has a cosine above -0.2 with some other.
    """
    lengths = (tensor.norm(dim=1).amax() for tensor in (products.queries, products.keys))
    bound = (products.scale.abs() * math.prod(lengths)).item()
    shift = max(bound - REACH, 0.0)

    def exponentials() -> Iterator[tuple[slice, torch.Tensor]]:
        for rows, logits in products.chunks():
            yield rows, (logits.sub_(shift) if shift else logits).exp_()

    row_sums, column_sums = torch.empty_like(row_weights), torch.zeros_like(column_weights)
    for rows, chunk in exponentials():
        torch.sum(chunk, dim=1, out=row_sums[rows])
        column_sums += chunk.sum(dim=0)
    if shift and torch.minimum(row_sums.min(), column_sums.min()) < math.exp(-REACH):
        return None
    value = row_weights @ (row_sums.log() + shift) + column_weights @ (column_sums.log() + shift)
    if products.wants_gradients:
        by_row, by_column, spare = row_weights / row_sums, column_weights / column_sums, products.spare()
        for rows, chunk in exponentials():
            shares = torch.add(by_row[rows, None], by_column, out=spare[: len(chunk)])
            products.add(rows, chunk.mul_(shares))
    return value


def _apart(products: _Products, row_weights: torch.Tensor, column_weights: torch.Tensor) -> torch.Tensor:
    """Both ways with every row's and column's own maximum, for logits of any range."""
    spare = products.spare()
    rows_log, columns_log = torch.empty_like(row_weights), torch.full_like(column_weights, -math.inf)
    for rows, logits in products.chunks():
        part = spare[: len(logits)]
        top = logits.amax(dim=1, keepdim=True)
        rows_log[rows] = torch.sub(logits, top, out=part).exp_().sum(dim=1).log_() + top.squeeze(1)
        top = logits.amax(dim=0)
        torch.logaddexp(columns_log, logits.sub_(top).exp_().sum(dim=0).log_() + top, out=columns_log)
    if products.wants_gradients:
        for rows, logits in products.chunks():
            part = torch.sub(logits, rows_log[rows, None], out=spare[: len(logits)]).exp_()
            part.mul_(row_weights[rows, None])
            products.add(rows, part.addcmul_(logits.sub_(columns_log).exp_(), column_weights))
    return row_weights @ rows_log + column_weights @ columns_log
