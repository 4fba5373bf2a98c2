from .changing import changed_model as changed_model
from .changing import changed_tensors as changed_tensors
from .choosing import similarity_cut as similarity_cut
