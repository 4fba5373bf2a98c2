from .adapters import load_adapters as load_adapters
from .adapters import merge_adapters as merge_adapters
from .adapters import save_adapters as save_adapters
from .training import Record as Record
from .training import heal as heal
from .training import train as train
