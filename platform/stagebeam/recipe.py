"""One schema for a run. DeepSpeed's settings, the Serve config and cluster manifests are derived
from it, never written beside it. Unknown keys are refused, every field says its unit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from stagebeam.annotate_config import AnnotateConfig
from stagebeam.endpoint_config import EngineServer, ServerConfig
from stagebeam.gateway_config import ImagesConfig, KeysConfig
from stagebeam.schema import Method, PositiveInt, Section, Tournament
from stagebeam.search_config import SearchConfig
from stagebeam.source_config import HeldOut, Source
from stagebeam.storage import Place, place_of
from stagebeam.tracking_config import TrackingConfig
from stagebeam.train_config import TrainConfig


class ModelConfig(Section):
    """The model that training starts from."""

    path: str = Field(description="Hugging Face folder or hub name.")
    family: Literal["mllama", "llava", "llava_next", "qwen2_5_vl"] = Field(
        "mllama", description="How prompts and images are built."
    )
    tiny_layers: PositiveInt | None = Field(
        None,
        description="If nothing is at `path`, build a small untrained model with this many "
        "decoder layers there.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Weights in compute.")


class DataConfig(Section):
    """Shards to train on, and where they come from."""

    shards: Place = Field(description="Folder of parquet shards with their manifest, or its URL.")
    sources: tuple[Source, ...] = Field((), description="What `prepare` reads.")
    held_out: HeldOut | None = Field(
        None, description="Keep a share of the sources of split `train` out of it."
    )
    rows_per_shard: PositiveInt = Field(4096, description="Rows in one parquet file.")
    require_stages: bool = Field(True, description="Refuse rows with an unstaged assistant turn.")
    max_image_pixels: PositiveInt = Field(50_000_000, description="Refuse larger images, pixels.")
    max_length: PositiveInt = Field(
        4096,
        description="Longest sequence in tokens; rows over it"
        " are refused when training reads them.",
    )
    weights: dict[str, float] = Field(
        {},
        description="How often an epoch reads the rows of a source (1 if not named): 2 each row "
        "twice, 0.5 every other row. By the rows' `source` or what it begins with.",
    )
    answers: Literal["stages", "untagged", "conclusion"] = Field(
        "stages",
        description="What is learnt of a staged answer: all of it, its text without the tags, or "
        "its conclusion alone (the paper's ablations).",
    )
    length_window: int = Field(
        8,
        ge=0,
        description="To pad less, the rows of so many global batches at a time are sorted by "
        "length; 0 leaves all to chance.",
    )

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative")
        return self


class JudgeTraining(Section):
    """How a judge is trained from the generator's own samples (docs/judge.md).

    What is not named here (workers, batch, schedule, ZeRO stage) is as in the train section.
    """

    output_dir: Path = Field(description="Pairs, checkpoints and the judge's model go here.")
    model: ModelConfig | None = Field(
        None, description="What it starts from; left out, the trained generator's weights."
    )
    pairs: Path | None = Field(
        None,
        description="Preferences to learn from, as `stagebeam preferences` writes them; left out, "
        "the generator's own mistakes on training questions.",
    )
    questions: PositiveInt = Field(512, description="Training questions that are sampled.")
    samples: PositiveInt = Field(4, description="Samples of the generator for each question.")
    temperature: float = Field(1.0, gt=0, description="Temperature of those samples.")
    max_new_tokens: PositiveInt = Field(2048, description="Longest sampled answer, tokens.")
    steps: PositiveInt = Field(400, description="Optimiser steps.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    pairs_per_row: float = Field(0.5, gt=0, description="Pairs beside each gold row of a batch.")
    pair_weight: float = Field(1.0, ge=0, description="Weight of the preference loss.")


class Scaling(Section):
    """Replicas of one deployment, scaled by the questions that they work for."""

    min_replicas: PositiveInt = Field(1, description="Replicas kept when idle.")
    max_replicas: PositiveInt = Field(1, description="Replicas under load.")
    target_questions: float = Field(
        16, gt=0, description="Questions worked for at once, a replica; more add replicas."
    )
    upscale_delay_s: float = Field(5.0, ge=0, description="Seconds of load before one is added.")
    downscale_delay_s: float = Field(60.0, ge=0, description="Idle seconds before one goes.")
    num_cpus: float = Field(1.0, ge=0, description="CPU cores that Ray reserves a replica.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


class LightScaling(Scaling):
    """Replicas of a deployment that waits more than it computes: the gateway, the searcher."""

    target_questions: float = Field(
        64, gt=0, description="Questions under way at once, a replica; more add replicas."
    )
    num_cpus: float = Field(0.1, ge=0, description="CPU cores that Ray reserves a replica.")


class Autoscaling(Scaling):
    """Replicas of a deployment that runs a model."""

    num_gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves a replica.")
    max_batch_rows: PositiveInt = Field(64, description="Rows decoded or scored in one batch.")


class EngineConfig(Section):
    """A model behind the generator or the judge protocol (docs/engines.md)."""

    engine: Literal["transformers", "vllm", "openai"] = Field(
        "transformers",
        description="What runs the model: this process, vLLM in this process, or the `server`.",
    )
    model: str = Field(description="Hugging Face folder or hub name; its name at the `server`.")
    server: EngineServer | None = Field(None, description="Where the model is, of engine openai.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, ...; transformers.")
    threads: PositiveInt = Field(1, description="CPU threads of one replica, of transformers.")
    kv_cache_mb: PositiveInt | None = Field(
        None,
        description="Memory for keys and values, megabytes. Left out, 256 for the prefixes that "
        "transformers keeps; vLLM takes its share of the GPU.",
    )
    draft_tokens: int = Field(
        8,
        ge=0,
        description="Tokens of a candidate that are guessed ahead of a pass at most, of "
        "transformers; texts stay the same, 0 makes no guesses.",
    )
    max_length: PositiveInt | None = Field(
        None, description="Longest prompt and answer together, tokens, of vLLM; else the model's."
    )
    tensor_parallel: PositiveInt = Field(
        1,
        description="GPUs of one node over which vLLM divides the model of each replica; the "
        "replica reserves them, and scaling.num_gpus is left out.",
    )
    scaling: Autoscaling = Field(default_factory=Autoscaling)

    @model_validator(mode="after")
    def _server(self) -> Self:
        if self.engine == "openai" and self.server is None:
            raise ValueError("engine openai needs a server")
        if self.engine != "openai" and self.server is not None:
            raise ValueError(f"engine {self.engine} has no server; engine openai has")
        return self

    @model_validator(mode="after")
    def _max_length(self) -> Self:
        if self.engine != "vllm" and self.max_length is not None:
            raise ValueError(f"engine {self.engine} has no max_length; engine vllm has")
        return self

    @model_validator(mode="after")
    def _tensor_parallel(self) -> Self:
        if self.tensor_parallel == 1:
            return self
        if self.engine != "vllm":
            raise ValueError(f"engine {self.engine} has no tensor_parallel; engine vllm has")
        if self.scaling.num_gpus not in (0, self.tensor_parallel):
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel} reserves as many GPUs a replica; leave "
                f"out scaling.num_gpus {self.scaling.num_gpus:g}"
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs that Ray reserves a replica."""
        return self.tensor_parallel if self.tensor_parallel > 1 else self.scaling.num_gpus


class JudgeConfig(EngineConfig):
    """The judge's model and how it is asked."""

    kind: Literal["verdict", "likelihood", "mean_likelihood", "reward", "text", "remote"] = Field(
        "verdict",
        description="Option-token logits in both orders, the candidate's log-probability (summed, "
        "or of a token), a reward model's number, a verdict that the model writes (the paper's), "
        "or option-token logits of a server.",
    )
    orders: Literal["one", "both"] = Field(
        "both", description="Whether kind text asks about a pair once, as the paper, or each way."
    )
    max_new_tokens: PositiveInt = Field(512, description="Longest verdict of kind text, tokens.")
    on_generator: bool = Field(
        False,
        description="Judge with the generator's model on its replicas, where image and prefix lie "
        "ready, instead of on replicas of its own.",
    )

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if self.kind not in ("text", "remote") and self.engine != "transformers":
            raise ValueError(
                f"kind {self.kind} reads the model in its own process, so it needs engine "
                f"transformers; engine {self.engine} judges by kind text"
                + (" or remote" if self.engine == "openai" else "")
            )
        if self.kind == "remote" and self.engine != "openai":
            raise ValueError("kind remote needs engine openai and its server")
        return self

    @property
    def as_generator(self) -> EngineConfig:
        """The judge's model in the generator's place."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields})


class Limits(Section):
    """What the operator allows in one request."""

    max_candidates: PositiveInt = Field(16, description="Largest N.")
    max_new_tokens: PositiveInt = Field(2048, description="Longest stage or answer, tokens.")
    max_body_bytes: PositiveInt = Field(20_000_000, description="Largest request body, bytes.")
    max_body_seconds: float = Field(
        60.0, gt=0, description="Longest that a request body may take to arrive, seconds."
    )
    max_images: PositiveInt = Field(4, description="Images in one conversation.")
    max_image_pixels: PositiveInt = Field(
        50_000_000,
        le=170_000_000,  # Pillow opens nothing larger
        description="Largest image, pixels.",
    )
    max_turns: PositiveInt = Field(32, description="Messages in one conversation.")
    max_text_chars: PositiveInt = Field(32_000, description="Characters in all messages together.")
    max_questions: PositiveInt = Field(
        256, description="Questions searched at once; as many again wait, more are turned away."
    )
    max_answer_tokens: PositiveInt | None = Field(
        None, description="Most tokens sampled for one answer, over all its candidates."
    )
    max_seconds: float | None = Field(None, gt=0, description="Longest search, seconds.")
    max_retraces: int = Field(8, ge=0, description="Times that a stage may go back.")
    methods: tuple[Method, ...] | None = Field(
        None, min_length=1, description="Methods that may be asked for; left out, all."
    )
    tournaments: tuple[Tournament, ...] | None = Field(
        None, min_length=1, description="Tournament forms that may be asked for; left out, all."
    )
    explain: bool = Field(True, description="Whether the judge may be asked for its reasons.")
    traces: bool = Field(True, description="Whether traces are shown.")


class ServeConfig(Section):
    """The HTTP application."""

    host: str = Field("127.0.0.1", description="Address that the HTTP proxy listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 picks a free one.")
    model_name: str = Field("stagebeam", description="Name in /v1/models.")
    generator: EngineConfig
    judge: JudgeConfig
    searcher: LightScaling = Field(default_factory=LightScaling)
    gateway: LightScaling = Field(default_factory=LightScaling)
    placement: Literal["pack", "spread", "auto"] = Field(
        "auto",
        description="`pack` keeps a question on one replica of each engine, `spread` divides its "
        "candidates and matches over all, `auto` over those that would idle.",
    )
    drain_seconds: float = Field(
        60.0, ge=0, description="How long what is under way may go on when a replica is stopped."
    )
    limits: Limits = Field(default_factory=Limits)
    keys: KeysConfig | None = Field(None, description="API keys; left out, whoever asks may.")
    images: ImagesConfig = Field(default_factory=ImagesConfig)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.judge.on_generator:
            return self
        if (self.judge.engine, self.judge.model) != (self.generator.engine, self.generator.model):
            raise ValueError("a judge on_generator has the generator's engine and model")
        if self.judge.kind in ("reward", "text", "remote"):
            raise ValueError(f"a judge of kind {self.judge.kind} cannot be on_generator")
        return self


class ReviewConfig(ServerConfig):
    """A judge model behind an OpenAI-compatible server, which grades answers to benchmarks."""

    model: str = Field(min_length=1, description="Name of the model at the server.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature.")
    max_tokens: PositiveInt = Field(
        1024, description="Longest reply, tokens; raise it for a model that thinks first."
    )
    concurrency: PositiveInt = Field(8, description="Calls in flight.")
    extra: dict[str, Any] = Field(
        {},
        description="Further keys of every request, such as `{search: {method: greedy}}` for an "
        "endpoint of this project.",
    )

    @property
    def as_engine(self) -> EngineConfig:
        """The same model and server as an engine section names them."""
        server = {name: getattr(self, name) for name in ServerConfig.model_fields}
        return EngineConfig(
            engine="openai",
            model=self.model,
            server=EngineServer(**server),
            scaling=Autoscaling(max_batch_rows=self.concurrency),
        )


class BenchmarkSet(Section):
    """Public benchmarks to ask too (docs/evaluation.md)."""

    folder: Path = Field(description="Where their TSV files are.")
    names: tuple[str, ...] = Field(min_length=1, description="Such as MMStar; see the docs.")
    mode: Literal["compat", "strict"] = Field(
        "compat",
        description="Read replies as published figures do, or the conclusion alone.",
    )
    rows: PositiveInt | None = Field(None, description="Rows of each, from the start; None: all.")
    review: ReviewConfig | None = Field(
        None, description="Who grades replies to MMVet and LLaVA-Bench and extracts MathVista's."
    )


class EvaluationConfig(Section):
    """What `evaluate` asks of a served endpoint."""

    output_dir: Place = Field(
        description="Report, traces and the tracked run go here, or to this URL."
    )
    shards: Place = Field(description="Held-out shards, or their URL.")
    rows: PositiveInt = Field(256, description="Questions, taken from the start of the shards.")
    candidates: tuple[PositiveInt, ...] = Field((2, 4), description="The N of each method.")
    methods: tuple[
        Literal["majority", "best_of_n", "sentence_beam", "stage_beam", "retrace"], ...
    ] = Field(
        ("majority", "best_of_n", "stage_beam"),
        description="Methods beside greedy; `retrace` needs search.calibration.",
    )
    concurrency: PositiveInt = Field(16, description="Questions in flight.")
    benchmarks: BenchmarkSet | None = Field(None, description="Public benchmarks to ask too.")
    card_questions: int = Field(
        128,
        ge=0,
        description="Questions behind the rows that are asked, on which the judge is measured; "
        "without them no gain from search is claimed.",
    )


class Recipe(Section):
    """A whole run. Sections that a job does not need may be left out."""

    name: str = Field(description="Name of the run, in reports and W&B.", min_length=1)
    seed: int = Field(0, description="Seed of initial weights, data order and sampling.")
    model: ModelConfig
    annotate: AnnotateConfig | None = None
    data: DataConfig
    train: TrainConfig | None = None
    judge_training: JudgeTraining | None = None
    serve: ServeConfig | None = None
    search: SearchConfig = Field(default_factory=SearchConfig)
    evaluation: EvaluationConfig | None = None
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    def to_yaml(self) -> str:
        """A file of its own, without what is left to defaults."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False)

    def fingerprint(self) -> str:
        """Twelve hex digits that change when any setting changes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def load_recipe(path: str | Place) -> Recipe:
    """Read a recipe file, by its path or URL. Its key `extends` names another one, beside it, that
    it changes: what it says itself counts, mapping by mapping; a list is replaced whole.

    Raises ValueError with one sentence that names the file, the field and what is wrong.
    """
    place = place_of(path)
    try:
        return Recipe.model_validate(read_settings(place))
    except ValidationError as error:
        raise ValueError(f"The recipe {place} is wrong: {describe(error)}.") from None


def read_settings(
    place: Place, what: str = "recipe", above: tuple[Place, ...] = ()
) -> dict[str, Any]:
    """A file's settings over those of the file that it extends; `above` are those that extend it.

    Raises ValueError with one sentence where there is no such file or it is no YAML mapping.
    """
    text = _text(place, what)
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        where = " ".join(str(error).split())
        raise ValueError(f"The {what} {place} is not valid YAML: {where}.") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"The {what} {place} must be a mapping of sections.")
    if "extends" not in loaded:
        return loaded
    base = place.parent / str(loaded.pop("extends"))
    above = (*above, place.resolve())
    if base.resolve() in above:
        raise ValueError(f"The {what} {place} extends itself.")
    return _over(read_settings(base, what, above), loaded)


def _text(place: Place, what: str) -> str:
    try:
        return place.resolve().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"There is no {what} file at {place}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The {what} {place} cannot be read: {error}.") from None


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _over(below, value)
        merged[key] = value
    return merged


def describe(error: ValidationError, what: str = "recipe") -> str:
    """Every complaint of a pydantic error in one line: `train.epochs: Input should be ...`."""
    return "; ".join(
        _one(str(e["type"]), ".".join(map(str, e["loc"])) or what, e["msg"], e["input"])
        for e in error.errors()
    )


def _one(kind: str, field: str, message: str, value: object) -> str:
    match kind:
        case "extra_forbidden":
            return f"unknown key '{field}'"
        case "missing":
            return f"'{field}' is missing"
        case "union_tag_not_found":
            return f"'{field}.kind' is missing"
        case "model_type":
            return f"'{field}' must be a mapping of settings, got {value!r}"[:300]
        case "value_error":  # written in this file, with its values
            return f"'{field}': {message.removeprefix('Value error, ')}"
    return f"'{field}': {message[:1].lower()}{message[1:]}, got {value!r}"[:300]
