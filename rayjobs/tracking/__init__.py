"""Runs in MLflow: parameters, metrics, files and models of one experiment. Knows nothing of what is measured."""

from rayjobs.tracking.client import connected
from rayjobs.tracking.entries import Dataset, Model
from rayjobs.tracking.registry import Registered, registered
from rayjobs.tracking.runs import close, history, is_open, register
from rayjobs.tracking.section import TrackingSection, tracking_uri
from rayjobs.tracking.spool import spools_at
from rayjobs.tracking.tracker import Tracker, tracked

__all__ = [
    "Dataset",
    "Model",
    "Registered",
    "Tracker",
    "TrackingSection",
    "close",
    "connected",
    "history",
    "is_open",
    "register",
    "registered",
    "spools_at",
    "tracked",
    "tracking_uri",
]
