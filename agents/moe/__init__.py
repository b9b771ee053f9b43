"""Re-mixing the experts inside a mixture-of-experts model at test time (C3PO, arXiv 2504.07964).

Modules here import torch; the package itself does not.
"""

from .settings import RemixSettings

__all__ = ["RemixSettings"]
