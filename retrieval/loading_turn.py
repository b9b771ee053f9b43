"""One model at a time is loaded by transformers in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from threading import Lock

__all__ = ["loading_turn"]

# `from_pretrained` (transformers 5.14) replaces PreTrainedModel.tie_weights, torch.linspace and
# torch's default dtype for everyone while it runs, and puts back what it found. Two that overlap can
# put back each other's replacement: from then on no model of the process ties its weights, and every
# later load fails with "Cannot copy out of meta tensor". The state is the process's, so is the lock.
_turn = Lock()


@contextlib.contextmanager
def loading_turn() -> Generator[None]:
    """Wait until no other thread loads a model, then load one, without a progress bar.

    The bar would end up in people's output; it too is switched on and off for the whole process.
    """
    from transformers.utils import logging

    with _turn:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()
