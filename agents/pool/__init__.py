"""The pool: which experts there are, how they are grouped by weights, and what they cost."""

from .catalog import Catalog
from .events import PoolEvent
from .groups import Group, group_experts
from .ledger import Account, Ledger, LoadRecord
from .outlook import Outlook, check_forecast
from .plan import Forecast, LoadPlan, PlannedGroup, make_plan
from .pool import Pool
from .ray_host import RayHost
from .specs import ExpertSpec, PoolFile
from .store import AnswerStore
from .timeline import Span, Timeline
from .weights import FolderWeights, HubWeights, PackageWeights

__all__ = [
    "Account",
    "AnswerStore",
    "Catalog",
    "ExpertSpec",
    "FolderWeights",
    "Forecast",
    "Group",
    "HubWeights",
    "Ledger",
    "LoadPlan",
    "LoadRecord",
    "Outlook",
    "PackageWeights",
    "PlannedGroup",
    "Pool",
    "PoolEvent",
    "PoolFile",
    "RayHost",
    "Span",
    "Timeline",
    "check_forecast",
    "group_experts",
    "make_plan",
]
