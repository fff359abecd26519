"""Freshet's engine: when, where and how views are kept. What a pipeline file needs is here."""

from engine.graph import deferred, immediate
from engine.pipeline import Pipeline
from operators.operator import DefinitionError

__all__ = ["DefinitionError", "Pipeline", "deferred", "immediate"]
