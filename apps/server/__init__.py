"""An OpenAI-compatible server over a panel, and over each expert of its pool."""

from .app import create_app
from .running import open_socket, run_server
from .settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "open_socket", "run_server"]
