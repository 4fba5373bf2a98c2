from .changing import change_model as change_model
from .changing import find_changed_tensors as find_changed_tensors
from .choosing import similarity_cut as similarity_cut
