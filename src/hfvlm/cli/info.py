"""`hfvlm info`: the architectures on the shelf, and what is installed."""

import importlib
import importlib.metadata
import json
import platform
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from hfvlm.cli.console import print_line, stdout
from hfvlm.registry import ARCHITECTURES, Architecture, find
from hfvlm.version import __version__


def _describe(row: Architecture) -> dict[str, Any]:
    """A row of the registry as plain data; reads the config's module for the variants, no modeling code."""
    config = importlib.import_module(row.config.split(":")[0])
    return {
        "name": row.name,
        "title": row.title,
        "model_type": row.model_type,
        "heads": {auto: path.split(":")[1] for auto, path in row.heads.items()},
        "variants": list(getattr(config, "VARIANTS", {})),
        "pipelines": {task: auto for task, (_, auto) in row.pipelines.items()},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, list[str]]:
    """Extra ("" for none) -> distributions that it asks for, as the installed package says."""
    try:
        requirements = importlib.metadata.requires("hfvlm") or []
    except importlib.metadata.PackageNotFoundError:  # run from the source, without being installed
        requirements = ["torch", "transformers"]
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)[0]
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if name != "hfvlm":
            extras.setdefault(extra[1] if extra else "", []).append(name)
    return extras


def _installation() -> dict[str, Any]:
    import torch

    from hfvlm.pipelines.dtype import choose_dtype

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    requirements = _requirements()
    return {
        "hfvlm": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in requirements.pop("", [])},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in requirements.items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "dtype": str(choose_dtype(device)).removeprefix("torch."),
    }


def _show_architectures(rows: list[dict[str, Any]]) -> None:
    table = Table("architecture", "heads", "variants", "pipelines", title="Architectures", show_lines=True)
    for row in rows:
        heads = "\n".join(f"{auto}\n  [dim]{cls}[/]" for auto, cls in row["heads"].items())
        name = f"[bold]{row['name']}[/] ({row['title']})\n[dim]{row['model_type']}[/]"
        table.add_row(name, heads, "\n".join(row["variants"]), "\n".join(row["pipelines"]))
    stdout().print(table)


def _show_installation(installed: dict[str, Any]) -> None:
    table = Table("", "version", title="Installed")
    for name in ("hfvlm", "python"):
        table.add_row(name, installed[name])
    for group, packages in {"": installed["packages"], **installed["extras"]}.items():
        for name, version in packages.items():
            table.add_row(f"{name} [dim]({group})[/]" if group else name, version or "[dim]not installed[/]")
    table.add_row("device", f"{installed['device']}, --dtype auto: {installed['dtype']}")
    stdout().print(table)


def info(
    architecture: Annotated[
        str | None, typer.Argument(metavar="[ARCH]", help="Only this architecture, by short name or model_type.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List the architectures, their heads and variants, and what is installed."""
    if architecture is not None:
        row = _describe(find(architecture))
        if as_json:
            print_line(json.dumps(row))
        else:
            _show_architectures([row])
        return
    rows, installed = [_describe(row) for row in ARCHITECTURES.values()], _installation()
    if as_json:
        print_line(json.dumps({"architectures": rows, "installed": installed}))
    else:
        _show_architectures(rows)
        _show_installation(installed)
