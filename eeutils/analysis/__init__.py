"""Analysis: each function reads one table, `Predictions`.

The names in `__init__.pyi` are imported on first use, because some need packages that take a second to load.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
