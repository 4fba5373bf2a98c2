from .changing import changed_model as changed_model
from .changing import changed_tensors as changed_tensors
from .fitting import bridged as bridged
from .merging import merged_model as merged_model
