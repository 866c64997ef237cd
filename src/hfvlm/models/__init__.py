"""The shelf of architectures, a folder each. Importing this registers them all and loads none."""

import importlib
import pkgutil


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
