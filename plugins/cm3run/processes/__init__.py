"""The processes that train one decoder together: this one alone, or those that torchrun started.

Whoever trains asks a `Processes` and is written once, for any number of them: sums over all, values that
the first one decides, work that only the first one does. With one process every answer is its own, and
torch.distributed is not imported.

interface   `Processes`, which is one process; tensors of which each process has a part
several     several of them, by torch.distributed
launched    what a launcher says of this process, and joining the others
"""

from cm3run.processes.interface import Processes, is_divided, own_part
from cm3run.processes.launched import started_processes
from cm3run.processes.several import is_lost

__all__ = ["Processes", "is_divided", "is_lost", "own_part", "started_processes"]
