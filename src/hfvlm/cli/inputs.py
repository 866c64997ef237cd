"""From what is named on the command line to a list of images."""

import glob
import os
from collections.abc import Iterator

from hfvlm.images import images_in


def find_images(names: list[str]) -> tuple[list[str], list[str]]:
    """The images that are meant, in order and each once; and a message for each name that leads to none.

    Args:
        names: files (whatever their suffix), folders (searched for image suffixes, hidden ones left out), glob
            patterns, or http(s) URLs.
    """
    problems: list[str] = []
    found = dict.fromkeys(path for name in names for path in _expand(name, problems))
    return list(found), problems


def _expand(name: str, problems: list[str]) -> Iterator[str]:
    if name.startswith(("http://", "https://")):
        yield name
    elif os.path.isdir(name):
        inside = list(images_in(name, problems))
        if not inside:
            problems.append(f"{name}: no image in this folder")
        yield from inside
    elif os.path.lexists(name):
        yield name
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            problems.append(f"{name}: matches no file")
        for match in matches:
            yield from images_in(match, problems) if os.path.isdir(match) else [match]
    else:
        problems.append(f"{name}: no such file or folder")
