from .planning import Plan as Plan
from .pruned_family import PrunedFamily as PrunedFamily
