"""What a researcher needs in a program of one's own; docs/api.md shows how it is used."""

from csd_lib.config import TrainConfig as TrainConfig
from csd_lib.data import Dataset as Dataset
from csd_lib.datasets import DATASETS as DATASETS
from csd_lib.datasets import DatasetSpec as DatasetSpec
from csd_lib.datasets import load_dataset as load_dataset
from csd_lib.experiment import load_run as load_run
from csd_lib.experiment import run_experiment as run_experiment
from csd_lib.losses import cross_entropy as cross_entropy
from csd_lib.losses import csd_loss as csd_loss
from csd_lib.losses import csd_loss_paper as csd_loss_paper
from csd_lib.losses import fecd_loss as fecd_loss
from csd_lib.losses import kd_loss as kd_loss
from csd_lib.losses import mmd_loss as mmd_loss
from csd_lib.losses import triplet_loss as triplet_loss
from csd_lib.methods import METHODS as METHODS
from csd_lib.methods import TERMS as TERMS
from csd_lib.methods import Method as Method
from csd_lib.methods import Term as Term
from csd_lib.model import Network as Network
from csd_lib.networks import NETWORKS as NETWORKS
from csd_lib.retrieval import embed as embed
from csd_lib.retrieval import recall_at_k as recall_at_k
from csd_lib.train import train as train
