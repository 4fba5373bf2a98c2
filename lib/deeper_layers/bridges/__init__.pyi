from .fitting import bridged as bridged
from .merging import merged_model as merged_model
