"""Key rules: a table that says where each tensor of a checkpoint goes, read forwards or backwards.

A table is a sequence of `Rename`, `Fuse`, `Split`, `Transpose`, `Drop`, `Twin` and `Fresh`; the first rule that
matches a key takes it. Patterns are keys with fields: `{i}` stands for one part between dots, `{*rest}` for any number
of parts. Nothing is lenient: a key that no rule takes, a model's key that no rule fills, a wrong shape, or two copies
of one tensor that differ are collected into one `KeyMismatch`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


Fit = Callable[[torch.Tensor, torch.Size], torch.Tensor]
LISTED = 50  # keys of each kind that an error prints; its attributes hold all


@functools.cache
def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r"\{(\*?\w+)\}", pattern)  # literals, and fields at the odd places
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.escape(part)
        else:
            parts[i] = f"(?P<{part[1:]}>.+)" if part[0] == "*" else f"(?P<{part}>[^.]+)"
    return re.compile("".join(parts))


def _match(patterns: Iterable[str], key: str) -> dict[str, str] | None:
    """What the fields stand for in the first pattern that `key` has the form of."""
    for pattern in patterns:
        if found := _regex(pattern).fullmatch(key):
            return found.groupdict()
    return None


def _fill(pattern: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{\*?(\w+)\}", lambda found: fields[found[1]], pattern)


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same values, NaN in the same places included."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


@dataclass(frozen=True)
class Rename:
    """The same tensor under another name.

    Args:
        source, target: patterns. Several: one tensor stored under each; a source may lack some of them, those it has
            must be equal, and the targets all get it.
        fit: makes the tensor fit a model's shape that differs (a position table for another image size).
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    fit: Fit | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return _tuple(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        return _tuple(self.target)

    def inverse(self) -> "Rename":
        return Rename(self.target, self.source, self.fit)

    def convert(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[0]] * len(self.targets)

    def source_shapes(self, shapes: list[torch.Size]) -> list[torch.Size]:
        """The shapes that the sources must have for targets of `shapes`."""
        return shapes[:1] * len(self.sources)


@dataclass(frozen=True)
class Fuse:
    """Tensors of equal shape, stored apart, stacked along their first dimension: query, key, value -> qkv."""

    sources: tuple[str, ...]
    target: str
    fit = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    def inverse(self) -> "Split":
        return Split(self.target, self.sources)

    def convert(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat(tensors)]

    def source_shapes(self, shapes: list[torch.Size]) -> list[torch.Size]:
        rows, *rest = shapes[0]
        return [torch.Size([rows // len(self.sources), *rest])] * len(self.sources)


@dataclass(frozen=True)
class Split:
    """The reverse of `Fuse`: one tensor cut along its first dimension into equal parts."""

    source: str
    targets: tuple[str, ...]
    fit = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def inverse(self) -> Fuse:
        return Fuse(self.targets, self.source)

    def convert(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(tensors[0].chunk(len(self.targets)))

    def source_shapes(self, shapes: list[torch.Size]) -> list[torch.Size]:
        rows, *rest = shapes[0]
        return [torch.Size([rows * len(self.targets), *rest])]


@dataclass(frozen=True)
class Drop:
    """A source key that has no place in the model, and why."""

    source: str
    reason: str
    targets = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def inverse(self) -> "Fresh":
        return Fresh(self.source, self.reason)


@dataclass(frozen=True)
class Twin:
    """A source key that holds the same tensor as another one, which is taken: they must be equal.

    Args:
        of: the other key; its fields are those of `source`.
    """

    source: str
    of: str
    targets = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def inverse(self) -> "Fresh":
        return Fresh(self.source, "a copy")


@dataclass(frozen=True)
class Transpose:
    """A matrix stored the other way round."""

    source: str
    target: str
    fit = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    def inverse(self) -> "Transpose":
        return Transpose(self.target, self.source)

    def convert(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[0].t().contiguous()]

    def source_shapes(self, shapes: list[torch.Size]) -> list[torch.Size]:
        return [shapes[0][::-1]]


@dataclass(frozen=True)
class Fresh:
    """A model's key that the source does not have, and why that is right; the model keeps what it was made with."""

    target: str
    reason: str
    sources = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    def inverse(self) -> Drop:
        return Drop(self.target, self.reason)


Rule = Rename | Fuse | Split | Transpose | Drop | Twin | Fresh


@dataclass(eq=False)
class KeyMismatch(ValueError):
    """A checkpoint and a model that do not fit; `str()` lists how.

    Args:
        missing: source keys that the model needs.
        extra: source keys that nothing takes.
        misshaped: source key -> (its shape, the shape it must have).
        unequal: pairs of source keys that must hold the same tensor and do not.
    """

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    unequal: list[tuple[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.missing, self.extra, self.misshaped, self.unequal))

    def __str__(self) -> str:
        kinds = {
            "missing keys": self.missing,
            "extra keys": self.extra,
            "wrongly shaped keys": [f"{key}: is {a}, must be {b}" for key, (a, b) in self.misshaped.items()],
            "copies that must be equal and are not": [f"{a}, {b}" for a, b in self.unequal],
        }
        lines = ["the checkpoint does not fit the model"]
        for kind, entries in kinds.items():
            if entries:
                lines.append(f"{len(entries)} {kind}:")
                lines += [f"  {entry}" for entry in entries[:LISTED]]
                lines += [f"  ... and {len(entries) - LISTED} more"] if len(entries) > LISTED else []
        return "\n".join(lines)


class Converted(NamedTuple):
    """Tensors by the model's keys, and the source keys that were left out, each with the reason."""

    tensors: dict[str, torch.Tensor]
    dropped: dict[str, str]


def invert(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The table for the way back."""
    return tuple(rule.inverse() for rule in rules)


def apply(
    rules: Iterable[Rule], tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size] | None = None
) -> Converted:
    """Converts the keys of `tensors`. Values are not changed, except where a rule's `fit` resizes one.

    Args:
        shapes: the model's keys and their shapes; all of them must be filled. None: whatever the rules give.

    Raises:
        KeyMismatch: lists everything that does not fit.
    """
    rules = tuple(rules)
    converted, errors = Converted({}, {}), KeyMismatch()
    groups: dict[tuple, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        taken = ((n, rule, _match(rule.sources, key)) for n, rule in enumerate(rules))
        number, rule, fields = next((hit for hit in taken if hit[2] is not None), (None, None, None))
        if rule is None:
            errors.extra.append(key)
        elif isinstance(rule, Drop):
            converted.dropped[key] = rule.reason
        elif isinstance(rule, Twin):
            other = _fill(rule.of, fields)
            if other not in tensors:
                errors.missing.append(other)
            elif not _equal(tensor, tensors[other]):
                errors.unequal.append((other, key))
            converted.dropped[key] = "stored twice"
        else:
            groups.setdefault((number, tuple(sorted(fields.items()))), {})[key] = tensor

    settled = set()  # targets that are filled, or whose sources are reported already
    for (number, fields), found in groups.items():
        rule, fields = rules[number], dict(fields)
        targets = [_fill(pattern, fields) for pattern in rule.targets]
        settled.update(targets)
        if shapes is not None and not all(target in shapes for target in targets):
            errors.extra += found
            continue
        lacking = [key for key in (_fill(pattern, fields) for pattern in rule.sources) if key not in found]
        if lacking and not isinstance(rule, Rename):
            errors.missing += lacking
            continue
        keys = [key for key in (_fill(pattern, fields) for pattern in rule.sources) if key in found]
        values = [found[key] for key in keys]
        if isinstance(rule, Rename):
            copies = [(keys[0], key) for key, value in zip(keys, values) if not _equal(value, values[0])]
            errors.unequal += copies
            if copies:
                continue
        if shapes is not None:
            wanted = rule.source_shapes([shapes[target] for target in targets])[: len(keys)]
            if rule.fit is not None:
                values = [v if v.shape == shape else rule.fit(v, shape) for v, shape in zip(values, wanted)]
            wrong = {k: (list(v.shape), list(s)) for k, v, s in zip(keys, values, wanted) if v.shape != s}
            errors.misshaped.update(wrong)
            if wrong:
                continue
        converted.tensors.update(zip(targets, rule.convert(values)))

    for target in shapes or {}:
        if target not in settled:
            errors.missing += _needed(rules, target)
    errors.missing = list(dict.fromkeys(errors.missing))
    if errors:
        raise errors
    return converted


def _needed(rules: tuple[Rule, ...], target: str) -> list[str]:
    """The source keys that would fill a model's key: none if it starts fresh."""
    for rule in rules:
        fields = _match(rule.targets, target)
        if fields is not None:
            names = [_fill(pattern, fields) for pattern in rule.sources]
            return names[:1] if isinstance(rule, Rename) else names
    return [f"{target} (the model's; no rule fills it)"]
