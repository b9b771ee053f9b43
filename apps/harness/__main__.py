"""`python -m expertmix.apps.harness …`: lm_eval's command line, with our model registered.

lm_eval finds `expertmix` by itself as soon as a release looks for the entry points `lm_eval.models`
(EleutherAI/lm-evaluation-harness#4013); 0.4.13 does not yet.
"""

from __future__ import annotations

import sys

from ...retrieval import InputError

__all__ = ["main"]


def main() -> None:
    """Run lm_eval's command line on `sys.argv`; what a person can correct is one sentence and status 2."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        sys.exit('lm_eval is not installed: pip install "expertmix[harness]"')
    from . import lm_eval_model

    assert lm_eval_model.ExpertmixLM is not None
    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
