from .changing import changed_model as changed_model
from .changing import find_changed_tensors as find_changed_tensors
from .choosing import similarity_cut as similarity_cut
