from .recording import recorded as recorded
from .skipping import skipped as skipped
from .summary import of_layers as of_layers
from .summary import of_pairs as of_pairs
from .summary import of_states as of_states
