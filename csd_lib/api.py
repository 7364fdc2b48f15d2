"""What a researcher needs in a program of one's own; docs/api.md shows how it is used."""

from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.datasets import DATASETS, DatasetSpec, load_dataset
from csd_lib.experiment import load_run, run_experiment
from csd_lib.losses import (
    cross_entropy,
    csd_loss,
    csd_loss_paper,
    fecd_loss,
    kd_loss,
    mmd_loss,
    triplet_loss,
)
from csd_lib.methods import METHODS, TERMS, Method, Term
from csd_lib.model import Network
from csd_lib.networks import NETWORKS
from csd_lib.retrieval import embed, recall_at_k
from csd_lib.train import train

__all__ = [
    "DATASETS",
    "METHODS",
    "NETWORKS",
    "TERMS",
    "Dataset",
    "DatasetSpec",
    "Method",
    "Network",
    "Term",
    "TrainConfig",
    "cross_entropy",
    "csd_loss",
    "csd_loss_paper",
    "embed",
    "fecd_loss",
    "kd_loss",
    "load_dataset",
    "load_run",
    "mmd_loss",
    "recall_at_k",
    "run_experiment",
    "train",
    "triplet_loss",
]
