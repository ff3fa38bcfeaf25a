"""The writer: a base model as an ONNX graph, decoded along approved clauses with each cluster's own adapter."""

from models.writer.adapters import Adapter
from models.writer.automaton import Free, Guided, Vocabulary, Walk, Written
from models.writer.base import Base, Shape, export_hf, fingerprint, load, locate
from models.writer.decoder import Cache, Model
from models.writer.engine import Counters, Engine, Request
from models.writer.graph import build, precision_for, prepare

__all__ = [
    "Adapter",
    "Base",
    "Cache",
    "Counters",
    "Engine",
    "Free",
    "Guided",
    "Model",
    "Request",
    "Shape",
    "Vocabulary",
    "Walk",
    "Written",
    "build",
    "export_hf",
    "fingerprint",
    "load",
    "locate",
    "precision_for",
    "prepare",
]
