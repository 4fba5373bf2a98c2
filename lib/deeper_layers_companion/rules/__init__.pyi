from .changing import change_model as change_model
from .changing import find_changed_tensors as find_changed_tensors
from .needs import measure_rule_needs as measure_rule_needs
