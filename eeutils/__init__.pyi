# Public names of `eeutils`, read by `__init__.py`, editors and type checkers.
from .analysis.costs import measure_seconds as measure_seconds
from .analysis.decisions import decide as decide
from .analysis.policies import ThresholdPolicy as ThresholdPolicy
from .analysis.predictions import Predictions as Predictions
from .analysis.predictions import predict as predict
from .analysis.risk import choose_with_guarantee as choose_with_guarantee
from .analysis.thresholds import choose_thresholds as choose_thresholds
from .cascade import Cascade as Cascade
from .classifier import Classifier as Classifier
from .classifier import load_classifier as load_classifier
from .data import data_from_folder as data_from_folder
from .data import data_from_hf as data_from_hf
from .data import data_from_tensors as data_from_tensors
from .data import data_from_torchvision as data_from_torchvision
from .data import list_data as list_data
from .data import load_data as load_data
from .data import load_image as load_image
from .models import MultiExitNet as MultiExitNet
from .models import create_model as create_model
from .models import list_models as list_models
from .models import with_exits as with_exits
from .models import with_internal_classifiers as with_internal_classifiers
from .training import TrainConfig as TrainConfig
from .training import fit as fit
from .training import list_recipes as list_recipes
from .training import recipe as recipe
from .weights import list_weights as list_weights
from .weights import load_history as load_history
from .weights import load_predictions as load_predictions
from .weights import load_weights as load_weights

__version__: str
__repository__: str
