"""What runs inside an engine's process: vLLM, and the loop that steps it.

The loop takes in whatever has arrived, steps vLLM once and sends what came of it, so a request that
arrives while a batch runs joins that batch. A second thread does nothing but listen: when the
socket ends, or an order to close arrives, it ends the process at once, in the middle of a load or a
step if need be. Nothing in here has to be saved.

Messages in: `load` (once, first), `generate`, `abort`, `close`, and while nothing is in flight
`reload`, `sleep`, `wake`. Messages out: `done` or `failed` to `load` and those three; `delta` and `reply`;
`beat` twice a second while there is progress; `died` before vLLM's own failure ends the process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from .base import Failure, Reply
from .frames import pack, receive_frame, reply_to_json, request_from_json
from .jobs import Job, JobMaker, Part, Reads, Refused, finished_reply
from .reasons import root_reason
from .tool_reading import settled_length
from .vllm_model import load_model, lora_requests
from .vllm_weights import count_tokens, fall_asleep, measure_probe, replace_weights, wake_up

__all__ = ["Loop", "main"]

_BEAT_SECONDS = 0.5
_AT_ONCE = 32  # requests encoded between two steps, so that a thousand new ones hold nobody up


def main(connection: socket.socket) -> None:
    """Load what the first message asks for, then serve until the connection ends."""
    order = receive_frame(connection)
    if order is None:
        return
    inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        engine = load_model(order["config"])
        loop = Loop(engine, order["config"], connection, inbox)
        connection.sendall(pack({"op": "done", **_figures(engine)}))
    except Exception as error:
        connection.sendall(pack({"op": "failed", "message": root_reason(error)}))
        raise
    try:
        loop.run()
    except Exception as error:
        connection.sendall(pack({"op": "died", "message": root_reason(error)}))
        raise


def _listen(connection: socket.socket, inbox: SimpleQueue[dict[str, Any]]) -> None:
    try:
        while (message := receive_frame(connection)) and message["op"] != "close":
            inbox.put(message)
    finally:
        os._exit(0)


def _figures(engine: Any, *, probed: bool = True) -> dict[str, Any]:
    import psutil

    return {
        "probe": measure_probe(engine) if probed else [],
        "memory_bytes": psutil.Process().memory_info().rss,
        "context_length": _window(engine),
        "can_sleep": engine.vllm_config.model_config.enable_sleep_mode,
    }


def _window(engine: Any) -> int:
    return int(engine.vllm_config.model_config.max_model_len)


class Loop:
    """Requests in, vLLM stepped, replies out."""

    def __init__(
        self,
        engine: Any,
        config: Mapping[str, Any],
        connection: socket.socket,
        inbox: SimpleQueue[dict[str, Any]],
    ) -> None:
        self.engine = engine
        self.connection = connection
        self.inbox = inbox
        self.adapters = lora_requests(config["adapters"])
        self.maker = JobMaker(
            tokenizer=engine.get_tokenizer(),
            template=config["chat_template"],
            window=_window(engine),
            adapters=self.adapters,
        )
        self.arrivals: deque[dict[str, Any]] = deque()
        self.waiting: deque[tuple[Job, Part]] = deque()
        self.running: dict[str, tuple[Job, Part]] = {}
        self.tokens = 0
        """Generated so far for requests that are finished."""
        self.beaten = 0.0

    def run(self) -> None:
        """Serve for ever; the listening thread ends the process."""
        while True:
            for message in self.messages():
                self.obey(message)
            for _ in range(min(_AT_ONCE, len(self.arrivals))):
                self.accept(self.arrivals.popleft())
            self.admit()
            if self.running:
                self.step()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Everything that has come in; waits for it only when there is nothing else to do."""
        if not (self.running or self.waiting or self.arrivals):
            yield self.inbox.get()
        while True:
            try:
                yield self.inbox.get_nowait()
            except Empty:
                return

    def obey(self, message: Mapping[str, Any]) -> None:
        """Take in new requests, or drop those that nobody waits for any more."""
        if message["op"] == "generate":
            self.arrivals.extend(message["requests"])
        elif message["op"] == "abort":
            self.drop(set(message["ids"]))
        else:
            self.change(message)

    def change(self, message: Mapping[str, Any]) -> None:
        """Do something to the weights, and report; a failure ends the process."""
        try:
            if message["op"] == "reload":
                replace_weights(self.engine, message["model"])
            elif message["op"] == "sleep":
                fall_asleep(self.engine, message["level"])
            elif message["op"] == "wake":
                wake_up(self.engine, message["level"])
            self.send({"op": "done", **_figures(self.engine, probed=message["op"] != "sleep")})
        except Exception as error:
            self.send({"op": "failed", "message": root_reason(error)})
            raise

    def accept(self, entry: Mapping[str, Any]) -> None:
        """Make a job of a request, or answer why not."""
        request = request_from_json(entry["request"])
        try:
            job = self.maker.make(entry["id"], request, stream=entry["stream"])
        except Refused as refusal:
            self.answer(entry["id"], Reply.failed(request, refusal.failure))
        else:
            self.waiting.extend((job, part) for part in job.parts)

    def drop(self, numbers: set[int]) -> None:
        """Forget jobs, and abort what vLLM has of them."""
        self.arrivals = deque(entry for entry in self.arrivals if entry["id"] not in numbers)
        self.waiting = deque(pair for pair in self.waiting if pair[0].number not in numbers)
        gone = [name for name, (job, _) in self.running.items() if job.number in numbers]
        for name in gone:
            del self.running[name]
        self.engine.abort_request(gone)

    def admit(self) -> None:
        """Hand to vLLM what may join the batch that it is working on.

        What does not suit that batch waits for it to drain, and whatever arrives later waits behind
        it, so that nothing starves. Once drained, everything that agrees goes in together.
        """
        company: set[Reads] = {part.reads for _, part in self.running.values()}
        if not self.waiting or not self.waiting[0][1].suits(company):
            return
        held: deque[tuple[Job, Part]] = deque()
        refused: dict[int, tuple[Job, str]] = {}
        for job, part in self.waiting:
            if not part.suits(company):
                held.append((job, part))
            elif job.number not in refused:
                reason = self.enter(job, part)
                if reason is None:
                    company.add(part.reads)
                else:
                    refused[job.number] = (job, reason)
        self.waiting = held
        for job, reason in refused.values():
            self.fail(job, f"vLLM refused the request: {reason}")

    def enter(self, job: Job, part: Part) -> str | None:
        """Give one part to vLLM. Returns vLLM's reason if it refuses."""
        lora = self.adapters[part.adapter] if part.adapter is not None else None
        prompt = {"prompt_token_ids": part.token_ids}
        try:
            self.engine.add_request(part.id, prompt, part.params, lora_request=lora)
        except Exception as error:  # vLLM has errors of its own that share no base with Python's
            return root_reason(error)
        self.running[part.id] = (job, part)
        return None

    def step(self) -> None:
        """Let vLLM work on every running part once, and send what came of it."""
        for output in self.engine.step():
            if output.request_id in self.running:
                self.advance(output)
        self.beat()
        if self.running and not self.engine.has_unfinished_requests():
            raise RuntimeError("vLLM forgot requests that it had accepted")

    def beat(self) -> None:
        """Show now and then that there is progress, and how much."""
        now = time.monotonic()
        if now - self.beaten >= _BEAT_SECONDS:
            self.beaten = now
            tokens = self.tokens + count_tokens(self.engine, self.running)
            self.send({"op": "beat", "tokens": tokens})

    def advance(self, output: Any) -> None:
        """Take one part's output; once a job's last part has finished, answer it."""
        job, part = self.running[output.request_id]
        if job.stream and not job.options:
            text = output.outputs[0].text
            self.stream(job, text[: settled_length(job.request, text)])
        if not output.finished:
            return
        del self.running[part.id]
        self.tokens += len(output.outputs[0].token_ids)
        job.outputs[part.id] = output
        if len(job.outputs) == len(job.parts):
            reply = finished_reply(job)
            if job.stream and not job.options:
                self.stream(job, reply.text)  # what was held back, and turned out to be no call
            self.answer(job.number, reply)

    def stream(self, job: Job, text: str) -> None:
        """Send what is new in a growing text."""
        if len(text) > job.sent:
            self.send({"op": "delta", "id": job.number, "text": text[job.sent :]})
            job.sent = len(text)

    def fail(self, job: Job, message: str) -> None:
        """Drop a job that vLLM does not take, and say why."""
        self.drop({job.number})
        failure = Failure(kind="refused", message=message)
        self.answer(job.number, Reply.failed(job.request, failure))

    def answer(self, number: int, reply: Reply) -> None:
        """Send a job's reply, which is the last that is heard of it."""
        self.send({"op": "reply", "id": number, "reply": reply_to_json(reply)})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; blocks while the other side does not read."""
        self.connection.sendall(pack(message))
