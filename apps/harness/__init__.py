"""Outside evaluation harnesses over a pool.

`lm_eval_model` and `inspect_provider` need the extra `harness` and are imported by those harnesses.
"""

from .router_arena import Price, Submission, read_prompts, read_run

__all__ = ["Price", "Submission", "read_prompts", "read_run"]
