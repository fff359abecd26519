"""Freshet's engine: when, where and how views are kept. What a pipeline file needs is here."""

from engine.pipeline import Pipeline
from engine.policy import debt, deferred, immediate, on_query
from operators.operator import DefinitionError

__all__ = ["DefinitionError", "Pipeline", "debt", "deferred", "immediate", "on_query"]
