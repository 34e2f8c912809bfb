"""Multi-exit networks: builders, heads, surgery, copies for inference."""

from eeutils.models.adapt import with_exits
from eeutils.models.airnet import airnet, airnet_3exits, whiten
from eeutils.models.exits import InternalClassifier, create_exit, list_pools
from eeutils.models.layers import MixedPool, SpatialPyramidPool
from eeutils.models.mobilenet import mobilenet, mobilenet_sdn
from eeutils.models.multiexit import MultiExitNet, Origin, map_tensors
from eeutils.models.registry import create_model, list_models, register_model
from eeutils.models.resnet import resnet18, resnet18_2exits, resnet18_3exits, resnet18_sdn, resnet56, resnet56_sdn
from eeutils.models.sdn import SDN_SHARES, exits_at_cost, with_internal_classifiers
from eeutils.models.surgery import (
    StageModule,
    add_exits,
    copy_backbone,
    drop_exits,
    prepared_for_inference,
    stage_modules,
    truncate,
    widen_backbone,
)
from eeutils.models.vgg import vgg16, vgg16_sdn
from eeutils.models.wideresnet import wideresnet32_4, wideresnet32_4_sdn
