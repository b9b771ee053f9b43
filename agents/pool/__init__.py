"""The pool: which experts there are, how they are grouped by weights, and what they cost."""

from .catalog import Catalog
from .events import PoolEvent
from .ledger import Account, Ledger, LoadRecord
from .plan import Group, LoadPlan, PlannedGroup, group_experts, make_plan
from .pool import Pool
from .specs import ExpertSpec, PoolFile
from .store import AnswerStore
from .weights import FolderWeights, HubWeights, PackageWeights

__all__ = [
    "Account",
    "AnswerStore",
    "Catalog",
    "ExpertSpec",
    "FolderWeights",
    "Group",
    "HubWeights",
    "Ledger",
    "LoadPlan",
    "LoadRecord",
    "PackageWeights",
    "PlannedGroup",
    "Pool",
    "PoolEvent",
    "PoolFile",
    "group_experts",
    "make_plan",
]
