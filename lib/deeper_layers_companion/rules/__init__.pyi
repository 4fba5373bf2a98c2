from .changing import change_model as change_model
from .changing import find_changed_tensors as find_changed_tensors
from .end_maps import FITTED as FITTED
from .end_maps import EndResiduals as EndResiduals
from .end_maps import replace_last_layers as replace_last_layers
from .needs import measure_rule_needs as measure_rule_needs
