"""A generator on vLLM, for models that vLLM runs: LLaVA, LLaVA-NeXT and Qwen2.5-VL, not Mllama.

vLLM batches the calls and keeps keys and values by the hash of what is before them, so that the
stage after a winner finds its prefix, and all candidates of a call the same prompt. Images go by
the hash of their bytes and are found as their features.

The engine has an event loop in a thread of its own: vLLM's async engine belongs to one loop, and
callers come from several. Needs the optional package vllm, which is imported here alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from transformers import AutoConfig

from stagebeam.inference.together import at_once, gathered
from stagebeam.inference.types import Candidate, FinishReason, GenerateRequest, Usage
from stagebeam.local_copy import fetched
from stagebeam.models.encoder import picture_of
from stagebeam.models.load import fingerprint
from stagebeam.models.registry import family_of
from stagebeam.recipe import EngineConfig

_Emit = Callable[[Candidate | Usage | Exception], object]


class VllmEngine:
    """Implements the Generator protocol."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ValueError where vLLM is not installed or has no such model."""
        config = config.model_copy(update={"model": fetched(config.model)})
        family = family_of(config.model)
        if family.name == "mllama":
            raise ValueError(f"vLLM does not run Mllama ({config.model}); use engine transformers.")
        self._vllm = _vllm()
        self._encoder = family.encoder(config.model)
        self.fingerprint = f"vllm-{fingerprint(config.model)}"
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        # made inside the loop, to which it then belongs
        self._engine: Any = asyncio.run_coroutine_threadsafe(
            self._open(config), self._loop
        ).result()

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        """Candidates as they finish, then the usage. Closing the iterator aborts the requests.

        Raises ValueError for a prompt that cannot be encoded or is too long.
        """
        prompt = await asyncio.to_thread(self._prompt, request)
        loop = asyncio.get_running_loop()
        out: asyncio.Queue[Candidate | Usage | Exception] = asyncio.Queue()

        def emit(item: Candidate | Usage | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(out.put_nowait, item)

        answering = asyncio.run_coroutine_threadsafe(
            self._answer(request, prompt, emit), self._loop
        )
        try:
            while True:
                item = await out.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Usage):
                    return
        finally:
            answering.cancel()

    async def check(self) -> None:
        """Raises vLLM's error where its core has died, RuntimeError where the thread has ended."""
        if not self._thread.is_alive():
            raise RuntimeError("The engine's thread has ended.")
        checking = asyncio.run_coroutine_threadsafe(self._engine.check_health(), self._loop)
        await asyncio.wrap_future(checking)

    def close(self) -> None:
        """Stop vLLM's processes and the thread."""
        self._engine.shutdown()
        self._engine = None  # it would shut down once more when Python ends, and fail
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _open(self, config: EngineConfig) -> Any:
        dtype = AutoConfig.from_pretrained(config.model).dtype
        on_cpu = self._vllm.platforms.current_platform.is_cpu()
        arguments = engine_arguments(config, dtype, on_cpu=on_cpu)
        return self._vllm.AsyncLLMEngine.from_engine_args(self._vllm.AsyncEngineArgs(**arguments))

    def _prompt(self, request: GenerateRequest) -> dict[str, Any]:
        """Token ids with one token for each image, which vLLM makes as many as the image takes."""
        images = request.prompt.images
        prompt, encoder = request.prompt, self._encoder
        ids = encoder.unexpanded_prompt_ids(prompt.messages, len(images), prompt.places)
        ids += encoder.text_ids(request.prefix)
        if not images:
            return {"prompt_token_ids": ids}
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": [picture_of(image) for image in images]},
            "multi_modal_uuids": {"image": [hashlib.sha256(image).hexdigest() for image in images]},
        }

    # --- in the engine's loop ---

    async def _answer(self, request: GenerateRequest, prompt: dict[str, Any], emit: _Emit) -> None:
        try:
            usages = await gathered(
                self._candidate(request, prompt, index, emit) for index in range(len(request.seeds))
            )
            # candidates find one another's prompt too: a hit of the call is one of all of them
            hits = min(usage.cache_hits for usage in usages)
            emit(replace(at_once(usages), cache_hits=hits))
        except self._vllm.exceptions.VLLMClientError as error:
            emit(ValueError(" ".join(str(error).split())))
        except Exception as error:
            emit(error)

    async def _candidate(
        self, request: GenerateRequest, prompt: dict[str, Any], index: int, emit: _Emit
    ) -> Usage:
        text, tokens, logprob, finish = "", 0, 0.0, None
        prefilled = cached = 0
        sampling = self._sampling(request, request.seeds[index])
        stream = self._engine.generate(prompt, sampling, str(next(self._numbers)))
        try:
            async with asyncio.timeout(request.seconds):  # vLLM aborts what is cancelled
                async for output in stream:
                    (piece,) = output.outputs
                    text += piece.text
                    tokens += len(piece.token_ids)
                    logprob = piece.cumulative_logprob or 0.0  # of all tokens so far
                    cached = output.num_cached_tokens or 0
                    prefilled = len(output.prompt_token_ids) - cached
                    finish = _finish(piece)
        except TimeoutError:
            finish = "length"
        assert finish is not None, "the last output says how it ended"
        emit(Candidate(index, text, tokens, logprob, finish))
        return Usage(
            prefill_tokens=prefilled,
            decode_tokens=tokens,
            sequential_passes=tokens,
            cache_hits=int(cached > 0),
        )

    def _sampling(self, request: GenerateRequest, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_new_tokens,
            seed=seed,
            stop=list(request.stops),
            include_stop_str_in_output=True,
            logprobs=0,  # of the sampled token alone, at temperature 1
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )


def engine_arguments(config: EngineConfig, dtype: Any, *, on_cpu: bool) -> dict[str, Any]:
    """What vLLM is told of a recipe's engine whose weights are of type `dtype`."""
    arguments: dict[str, Any] = {
        "model": config.model,
        "load_format": "safetensors",  # never a pickle
        # vLLM's own choice would halve the precision of float32 weights
        "dtype": dtype or "auto",
        "max_num_seqs": config.scaling.max_batch_rows,
        "max_model_len": config.max_length,
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {"video": 0},
        # a CPU would compile for minutes before the first token
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
    }
    if config.kv_cache_mb is not None:
        arguments["kv_cache_memory_bytes"] = config.kv_cache_mb << 20
    if config.tensor_parallel > 1:
        arguments["tensor_parallel_size"] = config.tensor_parallel
        # Processes on the replica's own GPUs. Left to itself, vLLM asks Ray for others where it
        # finds itself in a placement group.
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def _finish(piece: Any) -> FinishReason | None:
    """How a candidate ended; None while it goes on."""
    if piece.finish_reason in (None, "length"):
        return piece.finish_reason
    if piece.finish_reason != "stop":
        raise RuntimeError(f"vLLM gave up on a request: {piece.finish_reason}.")
    return "stop" if isinstance(piece.stop_reason, str) else "end"


def _vllm() -> Any:
    try:
        import vllm
        import vllm.exceptions
        import vllm.platforms
        import vllm.sampling_params
    except ImportError as error:
        raise ValueError(
            "Engine vllm needs the package vllm: pip install --constraint constraints.txt"
            f" --editable '.[vllm]' ({error})."
        ) from None
    return vllm
