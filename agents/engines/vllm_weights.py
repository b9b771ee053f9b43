"""What can be done to the weights of a vLLM engine that runs: replace, put to sleep, probe.

Runs inside the engine's process. Replacing weights in place takes a tenth of a second where a new
process takes four, but vLLM checks nothing: wrong shapes raise an empty error, mixture-of-experts
models answer wrongly without a word, and stale cache entries of the old weights are used (vLLM 0.32 on a CPU;
vllm#42821, #29341). So shapes are compared before (`pool/families.py`), and every way of getting weights
ends in a probe: the log-probabilities of a fixed text, which the pool compares with those that the same
weights gave when they were loaded afresh.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "can_sleep",
    "count_tokens",
    "fall_asleep",
    "measure_probe",
    "replace_weights",
    "wake_up",
]

PROBE = (
    "The capital of France is Paris. Water freezes at 0 degrees and 12 + 30 = 42. "
    "def add(a, b): return a + b"
)
PROBE_TOKENS = 32
"""Enough for every layer to matter, few enough to cost a few hundredths of a second."""


def measure_probe(engine: Any) -> list[float]:
    """Log-probability of each token of a fixed text but the first, under the present weights.

    Raises:
        RuntimeError: vLLM gives none.
    """
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    window = int(engine.vllm_config.model_config.max_model_len)
    tokens = list(engine.get_tokenizer().encode(PROBE))[: min(PROBE_TOKENS, window - 1)]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    engine.add_request("probe", {"prompt_token_ids": tokens}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                rows = (output.prompt_logprobs or [])[1:]
                pairs = zip(tokens[1:], rows, strict=True)
                return [float(row[token].logprob) for token, row in pairs]
    raise RuntimeError("vLLM forgot the probe")


def replace_weights(engine: Any, path: str | None) -> None:
    """Load other weights of the same shape in place; None loads the model's own anew.

    Nothing may be in flight. The tokenizer and the template stay.
    """
    engine.apply_model(_unpack_experts)
    how = {} if path is None else {"weights_path": path}
    engine.collective_rpc("reload_weights", kwargs=how)
    engine.reset_prefix_cache()  # its entries belong to the old weights


def _unpack_experts(model: Any) -> None:
    """Have vLLM pack the experts of a mixture again after loading, which it otherwise leaves out."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def can_sleep() -> bool:
    """Whether sleeping frees memory here. On a CPU vLLM says that it sleeps and frees nothing."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return not current_platform.is_cpu() and bool(current_platform.is_sleep_mode_available())


def fall_asleep(engine: Any, level: int) -> None:
    """Free the device's memory: weights go to main memory (1) or are dropped (2)."""
    engine.reset_prefix_cache()
    engine.sleep(level=level)


def wake_up(engine: Any, level: int) -> None:
    """Take the memory again. Without reading dropped weights anew, vLLM would answer gibberish."""
    if level == 1:
        engine.wake_up()
        return
    engine.wake_up(tags=["weights"])
    replace_weights(engine, None)
    engine.wake_up(tags=["kv_cache"])


def count_tokens(engine: Any, running: Any) -> int:
    """Tokens generated so far by requests that are not finished."""
    states = engine.output_processor.request_states
    found = (states[name] for name in running if name in states)
    return sum(s.detokenizer.num_output_tokens() for s in found if s.detokenizer is not None)
