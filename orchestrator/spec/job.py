"""`JobSpec`: a whole job file, section by section. Built by `spec.load`; later stages read it, none changes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from orchestrator.spec.base import Name, Section, Use
from orchestrator.spec.init import InitSection
from orchestrator.spec.sweep import SweepSection


class ParamGroup(Use):
    """Parameters whose name matches, with their own optimiser keys. The first group that matches a name wins."""

    use: str = Field(default="", exclude=True, description="not used here")
    match: str
    """Shell-style pattern over parameter names, for example `*.bias`."""


class OptimSection(Use):
    """The optimiser; keys not listed here (`lr`, `weight_decay`, `betas`, ...) are the optimiser's own."""

    use: str = "adamw"
    """adamw, sgd, adafactor, or the import path of your own."""
    groups: tuple[ParamGroup, ...] = ()
    """Parameter groups with keys of their own, for example `{match: "*.bias", weight_decay: 0}`."""
    clip_norm: PositiveFloat | None = None
    """Gradients are scaled down when the norm over the whole model exceeds this."""
    schedule: Use = Use(use="constant")
    """Learning-rate schedule: constant, cosine, linear, wsd; all take `warmup_steps`."""


class MonitorSection(Section):
    """Which metric says that one model is better than another."""

    metric: str = "val/loss"
    """Name as logged, for example `val/accuracy`."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more is better."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without improvement; absent: never stop early."""
    min_delta: float = Field(default=0.0, ge=0)
    """An improvement smaller than this does not count."""


class TrainSection(Section):
    """How long, how large, how exact."""

    steps: PositiveInt | None = None
    """Optimiser steps to take. Give this or `epochs`."""
    epochs: PositiveFloat | None = None
    """Passes over the training split. Give this or `steps`."""
    batch_size: PositiveInt = 32
    """Samples per optimiser step over all ranks and accumulation together (global)."""
    accumulate: PositiveInt = 1
    """Forward and backward passes per optimiser step; divides the memory that activations take."""
    eval_batch_size: PositiveInt | None = None
    """Samples per evaluation batch over all ranks; absent: the larger of batch_size and 256."""
    eval_every_steps: PositiveInt | None = None
    """Evaluate on the validation split every so many steps; absent: at the end of every epoch."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """fp32; bf16 = autocast with fp32 weights; fp64 for proofs of equality."""
    compile: bool = False
    """Compile with torch.compile, block by block where the model names its blocks, else the model as a whole."""
    float8: Literal["none", "native", "emulated"] = "none"
    """Products of linear layers inside blocks (not the head) in 8 bits, by torchao; native needs a GPU of compute
    capability 8.9 or more; emulated rounds alike on any device, without the speed. Needs precision bf16."""
    activation_checkpoint: Literal["none", "full", "every_n", "selective"] = "none"
    """Blocks whose activations are computed again in the backward pass: saves memory, costs time, changes no bit."""
    activation_checkpoint_every: PositiveInt = 2
    """With every_n: one block of so many forgets its activations."""
    deterministic: bool = True
    """Use only deterministic kernels, so that a fault at equal size changes no bit. Costs speed on some GPUs."""
    seed: NonNegativeInt = 0
    """Initial weights, sample order and dropout are functions of this."""
    init: InitSection | None = None
    """Weights to begin with, from a file; absent: drawn from the seed."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of image tensors; auto: channels_last for images, unless the model says `image_input = False`, or has
    strided 1x1 convolutions of few channels and trains on CPUs."""
    loss: Use | None = None
    """cross_entropy, mse, bce, or your own; absent: the one the model names."""
    loss_chunks: PositiveInt = 1
    """Pieces of a linear last layer and the loss, done one by one: saves the memory of a large vocabulary's scores."""
    metrics: tuple[Use, ...] | None = None
    """accuracy, top_k, mae, r2, or your own; absent: those that fit the loss."""
    callbacks: tuple[Use, ...] = ()
    """Your own code at fixed moments of the run (docs/plugins.md)."""
    monitor: MonitorSection = MonitorSection()
    """Decides the best checkpoint and early stopping."""
    profile: bool = False
    """Trace some steps of rank 0, and a pipeline's ranks, into the run's artifacts (also `run --profile`)."""
    max_skipped_steps: NonNegativeInt = 3
    """Steps in a row whose loss or gradient is not finite that are skipped before the run fails."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        return self


class ParallelSection(Section):
    """Degrees of the parallel axes; their product is the number of processes."""

    replicate: PositiveInt | Literal["auto"] = "auto"
    """Copies of the model, each on its own slice of the batch (DDP); auto: one per local GPU, else 1."""
    shard: PositiveInt = 1
    """Ranks that share weights, gradients and optimiser state (FSDP2), each on its own slice of the batch."""
    reshard_after_forward: bool | Literal["auto"] = "auto"
    """With shard above 1: put gathered weights away between forward and backward pass (true: least memory), or keep
    them (false: half the gathering); auto: units do, the outermost does not; under a pipeline all are kept."""
    shard_precision: Literal["full", "bf16"] = "full"
    """With shard above 1: full gathers weights as they are kept; bf16 gathers and computes in bf16 (half the traffic
    and memory), while kept weights and the sum of gradients stay fp32."""
    context: PositiveInt = 1
    """Ranks over which every sequence is split; must divide its length. How attention does it: `context_attention`."""
    context_attention: Literal["auto", "heads", "ring"] = "auto"
    """heads: all-to-all, for heads that divide; ring: keys and values go round, for any; auto: heads if they divide."""
    tensor: PositiveInt = 1
    """Ranks over which single layers are split (features, heads, channels, vocabulary), all on the same samples."""
    sequence: bool = True
    """With tensor above 1: also split the sequence over those ranks where layers work on single positions."""
    expert: PositiveInt = 1
    """Data ranks over which each layer's experts are spread; divides replicate x shard and the number of experts."""
    pipeline: PositiveInt = 1
    """Ranks over which the layers are dealt out in stages; each works on the microbatches in turn."""
    schedule: Literal[
        "gpipe",
        "1f1b",
        "interleaved_1f1b",
        "looped_bfs",
        "interleaved_zero_bubble",
        "zbv_zero_bubble",
        "dualpipe_v",
    ] = "1f1b"
    """Order in which a pipeline's stages work; those after 1f1b give every rank several stages."""
    microbatches: PositiveInt | None = None
    """Pieces of each rank's batch that flow through the pipeline; absent: twice the pipeline degree."""
    stages_per_rank: PositiveInt | None = None
    """Stages of every rank under looped schedules; absent: 2."""
    cuts: tuple[str, ...] = ()
    """Layers at which new stages begin; absent: balanced by operations and parameters."""


class ClusterSection(Section):
    """Where it runs and what is asked of the machines."""

    address: str | None = None
    """Ray address (`auto`, `ray://...`, `host:port`); absent: a local cluster is started for more than one process."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPU cores reserved for each worker; also its number of compute threads (rounded down, at least 1)."""
    gpus_per_worker: NonNegativeFloat | Literal["auto"] = "auto"
    """GPUs reserved for each worker; auto: 1 where there are GPUs, else 0."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Collectives; auto: nccl on GPUs, gloo on CPUs."""
    storage: str = "runs"
    """Folder for runs, checkpoints and the default tracking store; must be reachable by every worker."""
    wait_s: PositiveFloat = 300.0
    """Deadline on waiting for resources; then the run ends and says what was missing."""
    max_failures: NonNegativeInt = 3
    """Restarts allowed in a row without a new committed checkpoint; progress refills the budget."""
    start_timeout_s: PositiveFloat = 600.0
    """A worker that has not begun its first step after this long counts as hung."""
    step_timeout_s: PositiveFloat = 30.0
    """A step longer than this and than ten usual steps counts as hung."""


class CheckpointSection(Section):
    """When state is saved, and how much of it is kept."""

    every_steps: PositiveInt | None = None
    """Save every so many steps; absent: at the end of every epoch."""
    keep: int = Field(default=2, ge=2)
    """Newest checkpoints kept beside the best one; at least 2, so that a damaged newest has an older one behind it."""
    background: bool = True
    """Write while training goes on; the step waits only for the copy."""


class TrackSection(Section):
    """Where MLflow is and what it is told."""

    uri: str | None = None
    """MLflow tracking URI; absent: SQLite inside `cluster.storage`."""
    experiment: str = "default"
    """Experiment name."""
    offline: bool = False
    """Start even when the server cannot be reached; `orchestrator runs sync` ships the points later."""
    every_steps: PositiveInt = 10
    """Loss, gradient norm, learning rate and speed are logged every so many steps."""
    system_s: PositiveFloat | None = 5.0
    """Seconds between samples of CPU, memory and GPU use; null: none."""
    register_as: Name | None = None
    """Registered model that the result becomes a new version of; absent: logged, not registered."""
    alias: str | None = "newest"
    """Alias that is moved to the new version (`latest` is MLflow's own word for the highest version)."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the run."""
    description: str = ""
    """Free text shown in the run's description."""


class CalibrationSection(Section):
    """The samples that a step may look at to choose ranges or importance. Never those that decide the result."""

    split: str = "train"
    """Split they come from; the test split is refused."""
    samples: PositiveInt = 512
    """How many, from the beginning of the split; a smaller split is taken whole."""


class MeasureSection(Section):
    """What is timed. Ratios are taken within one process, contenders taking turns."""

    batch: tuple[PositiveInt, ...] = Field(default=(1, 32), min_length=1)
    """Batch sizes."""
    threads: tuple[PositiveInt, ...] = Field(default=(1, 2), min_length=1)
    """Numbers of threads; one that the machine does not have is left out. On a GPU they mean nothing."""
    rounds: PositiveInt = 24
    """Rounds; a ratio is the median over them."""


class LimitsSection(Section):
    """What the compressed model must keep; one that does not is reported and not registered."""

    accuracy_drop: NonNegativeFloat | None = None
    """Largest loss of accuracy on the final split, as a fraction (0.005 is half a point)."""
    size_ratio: PositiveFloat | None = None
    """Smallest ratio of the fp32 weights file to all files needed to run."""


class CompressSection(Section):
    """What is done to the trained model to make it smaller and faster; empty: nothing (docs/compression.md)."""

    steps: tuple[Use, ...] = ()
    """In order: prune, finetune, export, quantise, ...; each takes what the one before gives."""
    calibration: CalibrationSection = CalibrationSection()
    """Samples that steps may look at."""
    measure: MeasureSection = MeasureSection()
    """What is timed."""
    limits: LimitsSection = LimitsSection()
    """What must hold."""
    control: bool = False
    """Also give the model as it was the same finetuning, without compression, and report it beside."""


class JobSpec(Section):
    """One training run. Only `model` and `data` are required."""

    version: Literal[1] = 1
    """Version of the job format. A file of version 1 keeps its meaning in every release 1.x."""
    name: Name = "job"
    """Names the run; lower-case letters, digits and dashes."""
    model: Use
    """What is trained."""
    data: Use
    """What it is trained on."""
    optim: OptimSection = OptimSection()
    """How weights are updated."""
    train: TrainSection = TrainSection(epochs=1)
    """How long, how large, how exact."""
    parallel: ParallelSection = ParallelSection()
    """Over how many processes, and how they share the work."""
    cluster: ClusterSection = ClusterSection()
    """Where it runs."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When state is saved."""
    track: TrackSection = TrackSection()
    """What MLflow is told."""
    compress: CompressSection = CompressSection()
    """How the trained model is made smaller."""
    export: tuple[Use, ...] = (Use(use="program"),)
    """Files made of the trained model, each reloaded and compared: safetensors, program, onnx."""
    sweep: SweepSection | None = None
    """What `orchestrator sweep` searches; absent: nothing."""
