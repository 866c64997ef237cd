"""Fusion models as straightforward loops run them: plain attention, an image's tokens repeated for every text.

The weights are a model's own, so that both sides must give the same numbers. Nothing is shared between texts of one
image, every position's words are scored, and each pass (positives, negatives, masked or written texts) is its own, as
in the original training scripts.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, normalize, softmax


def norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def dense(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)


def attention(q, k, v, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """`[rows, length, dim]` each; `mask` `[rows, 1, length or 1, keys]`, added to the scores."""
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return (softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def parts(module: nn.Linear, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """What `count` layers stored as one give, each by itself."""
    return [linear(x, w, b) for w, b in zip(module.weight.chunk(count), module.bias.chunk(count))]


def see(tower, pixels: torch.Tensor) -> torch.Tensor:
    """A ViT's tokens `[images, tokens, width]`."""
    proj = tower.patch_embed.proj
    size = tower.config.patch_size
    weight = proj.weight.view(tower.config.hidden_size, -1, size, size)
    x = nn.functional.conv2d(pixels, weight, proj.bias, stride=size).flatten(2).transpose(1, 2)
    x = torch.cat([tower.cls_token.expand(len(x), -1, -1), x], dim=1) + tower.position_embedding
    for block in tower.blocks:
        q, k, v = parts(block.attn.qkv, norm(block.norm1, x), 3)
        x = x + dense(block.attn.proj, attention(q, k, v, block.attn.num_heads, None))
        x = x + dense(block.mlp.fc2, gelu(dense(block.mlp.fc1, norm(block.norm2, x))))
    return norm(tower.norm, x)


def embed(tower, ids: torch.Tensor) -> torch.Tensor:
    table = tower.embeddings
    x = table.word(ids) + table.position.weight[: ids.shape[1]]
    if table.token_type is not None:
        x = x + table.token_type.weight[0]
    return norm(table.norm, x)


def read(
    tower, x, mask, memory=None, layers=(0, None), causal: bool = False, memory_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Layers of a BERT over states `[rows, length, dim]`; `memory` `[rows, tokens, width]`, one of each row."""
    added = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
    seen = None if memory_mask is None else (1.0 - memory_mask[:, None, None, :].to(x.dtype)) * -1e9
    if causal:
        added = added + torch.full((x.shape[1], x.shape[1]), -10000.0, device=x.device).triu(1)
    for layer in tower.layers[slice(*layers)]:
        own, after = ("causal_attention", "causal_attention_norm") if causal else ("attention", "attention_norm")
        own, after = getattr(layer, own), getattr(layer, after)
        q, k, v = parts(own.qkv, x, 3)
        x = norm(after, x + dense(own.proj, attention(q, k, v, own.num_heads, added)))
        if memory is not None and layer.fuses:
            cross = layer.cross_attention
            k, v = parts(cross.kv, memory, 2)
            update = dense(cross.proj, attention(dense(cross.q, x), k, v, cross.num_heads, seen))
            x = norm(layer.cross_attention_norm, x + update)
        x = norm(layer.mlp_norm, x + dense(layer.mlp.fc2, gelu(dense(layer.mlp.fc1, x))))
    return x


def score_words(head, x: torch.Tensor) -> torch.Tensor:
    return dense(head.decoder, norm(head.norm, gelu(dense(head.dense, x))))


def contrast(model, tokens, text, taught_tokens, taught_text, alpha: float):
    """The contrastive loss, and the similarities that negatives are drawn by."""
    embeds = [
        normalize(dense(projection, states[:, 0]), dim=-1)
        for projection, states in (
            (model.vision_proj, tokens),
            (model.text_proj, text),
            (model.teacher_vision_proj, taught_tokens),
            (model.teacher_text_proj, taught_text),
        )
    ]
    keys = [torch.cat([embeds[2], model.image_queue.features]), torch.cat([embeds[3], model.text_queue.features])]
    hard = torch.eye(len(tokens), len(keys[0]), device=tokens.device)
    losses, logits = [], []
    for own, taught, other in ((embeds[0], embeds[2], keys[1]), (embeds[1], embeds[3], keys[0])):
        with torch.no_grad():
            target = alpha * softmax(taught @ other.t() / model.temp, dim=1) + (1 - alpha) * hard
        logits.append(own @ other.t() / model.temp)
        losses.append(-(logits[-1].log_softmax(1) * target).sum(1).mean())
    return sum(losses) / 2, [part[:, : len(tokens)].detach() for part in logits]


def matching(model, fuse, tokens, text, mask, to_texts, to_images, draw) -> torch.Tensor:
    """Positives in one pass, negatives in another, each text with a copy of its image's tokens."""
    rows = len(tokens)
    with torch.no_grad():
        weights = [softmax(part, dim=1).fill_diagonal_(0) for part in (to_images, to_texts)]
    images, texts = draw(weights[0]), draw(weights[1])
    right = fuse(text, mask, tokens)[:, 0]
    wrong = fuse(torch.cat([text, text[texts]]), torch.cat([mask, mask[texts]]), torch.cat([tokens[images], tokens]))[
        :, 0
    ]
    labels = torch.tensor([1] * rows + [0] * 2 * rows, device=mask.device)
    return cross_entropy(dense(model.itm_head, torch.cat([right, wrong])), labels)


def blip_step(model, pixels, ids, mask, alpha: float, draw) -> torch.Tensor:
    """BLIP's pretraining loss."""
    text = model.text_model
    tokens = see(model.vision_model, pixels)
    states = read(text, embed(text, ids), mask)
    with torch.no_grad():
        model._move_teacher()
        taught_tokens = see(model.teacher_vision_model, pixels)
        taught = read(model.teacher_text_model, embed(model.teacher_text_model, ids), mask)
    loss, (to_texts, to_images) = contrast(model, tokens, states, taught_tokens, taught, alpha)

    def fuse(ids, mask, memory):
        return read(text, embed(text, ids), mask, memory)

    started = ids.clone()
    started[:, 0] = model.config.enc_token_id
    loss = loss + matching(model, fuse, tokens, started, mask, to_texts, to_images, draw)
    started = ids.clone()
    started[:, 0] = model.config.text_config.bos_token_id
    logits = score_words(model.lm_head, read(text, embed(text, started), mask, tokens, causal=True))
    labels = started.masked_fill(mask == 0, -100)[:, 1:]
    smoothing = model.config.label_smoothing
    return loss + cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), label_smoothing=smoothing)


def albef_step(model, pixels, ids, mask, masked, labels, alpha: float, draw) -> torch.Tensor:
    """ALBEF's pretraining loss; `masked` `[rows, length]` ids with some hidden, `labels` what these were."""
    text, first = model.text_model, model.config.text_config.fusion_layer
    tokens = see(model.vision_model, pixels)
    states = read(text, embed(text, ids), mask, layers=(0, first))
    with torch.no_grad():
        model._move_teacher()
        taught_tokens = see(model.teacher_vision_model, pixels)
        teacher = model.teacher_text_model
        taught = read(teacher, embed(teacher, ids), mask, layers=(0, first))
    loss, (to_texts, to_images) = contrast(model, tokens, states, taught_tokens, taught, alpha)

    def fuse(states, mask, memory):
        return read(text, states, mask, memory, layers=(first, None))

    loss = loss + matching(model, fuse, tokens, states, mask, to_texts, to_images, draw)
    with torch.no_grad():
        soft = score_words(model.teacher_lm_head, read(teacher, embed(teacher, masked), mask, taught_tokens))
    logits = score_words(model.lm_head, read(text, embed(text, masked), mask, tokens))
    hard = cross_entropy(logits.flatten(0, 1), labels.flatten())
    each = -(logits.log_softmax(-1) * softmax(soft, dim=-1)).sum(-1)[labels != -100]
    return loss + (1 - alpha) * hard + alpha * each.mean()


@torch.no_grad()
def rerank(model, tokens, ids, mask, similarity, k: int, adds_similarity: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of each image's `k` nearest texts, and of each text's `k` nearest images; the others are -100.

    Args:
        tokens: `[images, tokens, width]`.
        ids, mask: `[texts, length]`.
        similarity: `[images, texts]`.
    """
    text, first = model.text_model, model.config.text_config.fusion_layer
    started = ids.clone()
    if not first:
        started[:, 0] = model.config.enc_token_id
    states = [embed(text, started[i : i + 256]) for i in range(0, len(ids), 256)]
    if first:
        states = [read(text, part, mask[256 * i : 256 * (i + 1)], layers=(0, first)) for i, part in enumerate(states)]
    states = torch.cat(states)
    scores = [torch.full_like(similarity, -100.0), torch.full_like(similarity.t(), -100.0)]
    for table, near, of_image in ((scores[0], similarity, True), (scores[1], similarity.t(), False)):
        for row in range(len(near)):
            best, index = near[row].topk(min(k, near.shape[1]))
            count = len(index)
            memory = tokens[row][None].repeat(count, 1, 1) if of_image else tokens[index]
            which = index if of_image else torch.full((count,), row, device=index.device)
            fused = read(text, states[which], mask[which], memory, layers=(first, None))[:, 0]
            logits = dense(model.itm_head, fused)[:, 1].float()
            table[row, index] = logits + best if adds_similarity else logits
    return scores[0], scores[1]


@torch.no_grad()
def rank_answers(model, pixels, ids, mask, answers, answer_mask, k: int) -> torch.Tensor:
    """The log-likelihoods of each question's `k` candidates, likeliest first; its states are copied for each."""
    tokens, text, decoder = see(model.vision_model, pixels), model.text_model, model.text_decoder
    started = model.matching_ids(ids, mask)
    states = read(text, embed(text, started), mask, tokens)
    one = answers[:1, :1].expand(len(ids), 1)
    first = read(decoder, embed(decoder, one), torch.ones_like(one), states, causal=True, memory_mask=mask)
    near = softmax(score_words(model.lm_head, first[:, 0]), dim=-1)[:, answers[:, 1]]
    found = []
    for row, chosen in enumerate(near.topk(min(k, len(answers)), dim=-1).indices):
        own, own_mask = answers[chosen], answer_mask[chosen]
        memory = states[row][None].repeat(len(own), 1, 1)
        seen = mask[row][None].repeat(len(own), 1)
        written = read(decoder, embed(decoder, own), own_mask, memory, causal=True, memory_mask=seen)
        logits = score_words(model.lm_head, written)[:, :-1]
        labels = own.masked_fill(own_mask == 0, -100)[:, 1:]
        losses = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=model.config.label_smoothing, reduction="none"
        )
        found.append(losses.view(len(own), -1).sum(1).neg().sort(descending=True).values)
    return torch.stack(found)
