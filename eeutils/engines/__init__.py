"""Engines: what runs the stages of a network, from torch itself to OpenVINO."""

from eeutils.engines.prepared import PreparedNet
from eeutils.engines.registry import Engine, Settings, Stages, list_engines, register_engine

__all__ = ["Engine", "PreparedNet", "Settings", "Stages", "list_engines", "register_engine"]
