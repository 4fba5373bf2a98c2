from .choosing import REGISTERED as REGISTERED
from .choosing import RULES as RULES
from .choosing import cuts_of_rule as cuts_of_rule
from .choosing import measured_cuts as measured_cuts
from .similarity import distance_matrix as distance_matrix
from .similarity import distance_table as distance_table
from .similarity import similarity_cut as similarity_cut
