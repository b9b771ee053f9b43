"""One file per way of running a model, all behind one small async protocol."""

from .base import (
    Chunk,
    Engine,
    EngineError,
    Failure,
    Load,
    Message,
    OptionScore,
    Pulsed,
    Reply,
    Request,
    Sampling,
    Sleeper,
    Swapper,
    TokenLogprob,
    ToolCall,
    Usage,
)

__all__ = [
    "Chunk",
    "Engine",
    "EngineError",
    "Failure",
    "Load",
    "Message",
    "OptionScore",
    "Pulsed",
    "Reply",
    "Request",
    "Sampling",
    "Sleeper",
    "Swapper",
    "TokenLogprob",
    "ToolCall",
    "Usage",
]
