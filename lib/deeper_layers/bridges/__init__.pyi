from .fitting import bridged as bridged
from .merging import likeness_on as likeness_on
from .merging import merged_model as merged_model
