"""`quantise` with scheme 2:4: what keeps two of every four weights, what skips the zeros, what is refused and why.

No GPU is here: `pretended` says what is pretended and what is torch's own.
"""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import api
from orchestrator.compress import footprint, timing
from orchestrator.compress.base import Context
from orchestrator.compress.gpu import require_gpu
from orchestrator.compress.manifest import read_page
from orchestrator.compress.measures import fidelity
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.products import cast
from orchestrator.compress.report import metrics, table
from orchestrator.compress.runtimes.base import open_folder
from orchestrator.compress.runtimes.program import ON_CUDA, RUNTIME, WITH_ZEROS
from orchestrator.compress.runtimes.sparse import sparse_facts
from orchestrator.compress.runtimes.two_of_four import is_two_of_four, pack_of, skip_zeros, with_zeros
from orchestrator.compress.sparse import Halves, Product, keep_two
from orchestrator.compress.verify import _ask
from orchestrator.compress.writers.float8 import to_float8
from orchestrator.compress.writers.sparse import to_sparse
from orchestrator.errors import ExportError, JobFileError, NotAbleError, PlanError
from orchestrator.export.program import save_program
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.spec.load import load_spec

from .making import context_of, make_trained
from .pretended import kernels, pack, pretended_gpu
from .test_float8 import MODELS, answered_on_gpu, job, operators

PRUNE, EXPORT = {"use": "prune", "kind": "2:4"}, {"use": "export", "format": "program"}
QUANTISE = {"use": "quantise", "scheme": "2:4", "target": "cuda"}
STEPS = [PRUNE, {"use": "finetune", "epochs": 1}, EXPORT, QUANTISE]
WIDE = {"use": "mlp", "inputs": 64, "hidden": [256, 256], "outputs": 10}
CPU = torch.device("cpu")
LINEAR = ("mlp", "transformer", "tied", "repeated", "vit")


def masked(name: str) -> Trained:
    """Return a model whose linear layers have zeros in two of every four weights where their inputs allow it."""
    with pretended_gpu():
        trained = make_trained(load_spec(job(MODELS[name], steps=STEPS)), epochs=0)
    for layer in trained.model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.shape[1] % 4:
            layer.weight.data = zeroed(layer.weight.data)
    return trained


def zeroed(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight without the lesser two of every four in a row."""
    groups = weight.reshape(-1, 4)
    least = groups.abs().topk(2, dim=1, largest=False).indices
    return groups.scatter(1, least, 0.0).view_as(weight)


def make_good(folder: Path) -> Outcome:
    """Return a compression whose file holds."""
    with pretended_gpu():
        trained = make_trained(load_spec(job(WIDE, steps=STEPS)), epochs=3)
        outcome = compress(trained, folder / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return make_good(tmp_path_factory.mktemp("good"))


def test_what_is_kept_is_the_weight_in_bfloat16() -> None:
    torch.manual_seed(0)
    weight = zeroed(torch.randn(32, 128))
    weight[3] = 0
    weight[4, ::4], weight[5, 2::4] = 0, 0  # fewer than two of four
    values, places = keep_two(weight)
    assert (values.shape, places.shape) == ((32, 64), (32, 16))
    assert values.numel() * 2 + places.numel() == 1.125 * weight.numel()
    rows = torch.eye(128)
    found = Product(values, places, None)(Halves()(rows), rows)
    assert torch.equal(found, weight.bfloat16().float().t())


@pytest.mark.parametrize("shape", [(7, 64), (1, 64), (3, 5, 64)])
def test_a_layer_answers_as_in_floats(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(shape)
    layer.weight.data = zeroed(layer.weight.data)
    found = Product(*keep_two(layer.weight), layer.bias.detach())(Halves()(x), x)
    assert (found.dtype, found.shape) == (torch.float32, layer(x).shape)
    assert fidelity(found.numpy(), layer(x).detach().numpy(), "value")["sqnr_db"] > 45


def test_zeros_that_stand_otherwise_are_none_of_two_of_four() -> None:
    weight = zeroed(torch.randn(32, 64))
    assert is_two_of_four(weight)
    weight[7, 20:23] = 1
    assert not is_two_of_four(weight)
    assert not is_two_of_four(torch.zeros(32, 62))
    assert not is_two_of_four(torch.zeros(32, 8, 8))


@pytest.mark.parametrize("name", LINEAR)
def test_every_model_of_linear_layers_is_covered(name: str, tmp_path: Path) -> None:
    trained = masked(name)
    program, layers = to_sparse(trained.model, context_of(trained, tmp_path))
    facts = sparse_facts(program)
    assert facts.products == layers > 0
    assert facts.coverage > 0.8, facts.others
    assert facts.place_bytes * 8 == facts.kept
    inputs, _ = context_of(trained, tmp_path).calibration()
    found, wanted = program.module()(inputs[:16]), trained.model(inputs[:16]).detach()
    assert fidelity(found.numpy(), wanted.numpy(), "class")["sqnr_db"] > 35


def test_layers_that_read_one_input_round_it_once(tmp_path: Path) -> None:
    trained = masked("transformer")
    program, layers = to_sparse(trained.model, context_of(trained, tmp_path))
    halves = [node for node in program.graph.nodes if node.kwargs.get("dtype") == torch.bfloat16]
    # Two blocks of seven layers: query, key and value read one input, gate and up another; then the head.
    assert (layers, len(halves)) == (15, 9)


def test_a_weight_that_several_layers_read_is_kept_and_prepared_once(tmp_path: Path) -> None:
    trained = masked("repeated")
    program, layers = to_sparse(trained.model, context_of(trained, tmp_path))
    stored = {value.untyped_storage().data_ptr() for value in program.state_dict.values() if value.dtype == torch.uint8}
    assert (layers, len(stored)) == (15, 8)  # a block of seven layers that is run twice, and the head
    module = program.module()
    assert skip_zeros(module, CPU) == 15
    assert len([name for name, _ in module.named_buffers() if name.startswith("two_of_four")]) == 8


@pytest.mark.parametrize("name", LINEAR)
def test_torchs_own_weights_skip_the_zeros_and_answer_alike(name: str, tmp_path: Path) -> None:
    trained = masked(name)
    program, layers = to_sparse(trained.model, context_of(trained, tmp_path))
    inputs, _ = context_of(trained, tmp_path).calibration()
    wanted, module = program.module()(inputs[:16]), program.module()
    with kernels() as found, torch.inference_mode():
        assert skip_zeros(module, CPU, pack) == layers
        answers = module(inputs[:16])
    assert found.calls == layers
    assert fidelity(answers.numpy(), wanted.numpy(), "class")["sqnr_db"] > 45
    left = [name for name, value in module.named_buffers() if value.dtype == torch.uint8 and value.dim() == 2]
    assert left == []  # what the weights were made of takes no memory beside them


def test_on_a_processor_the_zeros_are_put_back_once(tmp_path: Path) -> None:
    trained = masked("vit")
    program, layers = to_sparse(trained.model, context_of(trained, tmp_path))
    inputs, _ = context_of(trained, tmp_path).calibration()
    wanted, module = program.module()(inputs[:16]), program.module()
    assert pack_of(CPU) is with_zeros
    assert skip_zeros(module, CPU) == layers
    assert torch.equal(module(inputs[:16]), wanted)
    assert not [node for node in module.graph.nodes if "scatter" in str(node.target)]


def test_a_program_of_other_layers_is_left_alone(tmp_path: Path) -> None:
    from orchestrator.compress.writers.program import trace_lean

    trained = masked("mlp")  # its zeros lie among the other weights
    program = trace_lean(trained.model, context_of(trained, tmp_path))
    before = operators(program)
    module = program.module()
    assert skip_zeros(module, CPU, pack) == 0
    assert (sparse_facts(program).products, sparse_facts(program).coverage) == (0, 0.0)
    assert operators(program) == before


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "tied", "vit"])
def test_the_program_keeps_the_rules_of_gpus(name: str, rows: int, tmp_path: Path) -> None:
    """Nothing is computed: torch's own rules for products on CUDA are asked with tensors that have no data."""
    trained = masked(name)
    program, _ = to_sparse(trained.model, context_of(trained, tmp_path))
    inputs, _ = context_of(trained, tmp_path).calibration()
    assert answered_on_gpu(program, inputs[:rows]) == trained.model(inputs[:rows]).shape


def test_torchs_pass_moves_all_of_the_program(tmp_path: Path) -> None:
    from torch.export.passes import move_to_device_pass

    trained = masked("mlp")
    program, _ = to_sparse(trained.model, context_of(trained, tmp_path))
    moved = move_to_device_pass(program, "meta")
    named = [torch.device(node.kwargs["device"]).type for node in moved.graph.nodes if "device" in node.kwargs]
    assert set(named) == {"meta"}
    assert {value.device.type for value in moved.state_dict.values()} == {"meta"}


def test_a_file_holds_and_says_what_it_keeps(good: Outcome) -> None:
    page, found = read_page(good.folder / "artifact"), good.checked
    assert (page.scheme, page.target) == ("2:4", "cuda")
    assert (page.machine["gpu"], page.machine["capability"], page.machine["skips_zeros_by"]) == (
        "pretended",
        "9.0",
        "torch's",
    )
    assert (found["sparse_operators"], found["float8_operators"], found["integer_operators"]) == (2, 0, 0)
    assert found["coverage"] > 0.95
    assert found["size_ratio"] > 2.3
    assert found["fidelity"]["sqnr_db"] > 45
    assert found["weights_by_bits"] == {"16": (64 * 256 + 256 * 256) // 2, "32": 3082}
    assert any("2 operators keep two of every four weights, 96.4% of the weights" in line for line in table(good))
    assert metrics(good)["compress/sparse_operators"] == 2


def test_it_is_timed_beside_itself_with_the_zeros_multiplied(
    good: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "MAX_NOISE", 10.0)
    place = good.folder / "artifact"
    with pretended_gpu() as found:
        (row,) = timing.time_all(place)
        assert footprint.main(["candidate", str(place), "program", "cuda", "0"]) == 0
    assert found.calls > 0
    contents = {"model.pt2": (place / "model.pt2").read_bytes()}
    with pretended_gpu() as found:
        inputs = torch.rand(3, 64).numpy()
        WITH_ZEROS.open(contents)(inputs)
        assert found.calls == 0
        ON_CUDA.open(contents)
        tried = found.calls  # the library, by a product of its own
        ON_CUDA.open(contents)(inputs)
        assert found.calls == tried + 2
    assert (row["target"], row["threads"]) == ("cuda", 1)
    assert {"speedup", "speedup_runtime", "speedup_dense"} <= row.keys()
    assert "peak_gpu_bytes" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    figures = {"peak_rss_bytes": 2**20, "ready_s": 1.0, "peak_gpu_bytes": 2**21}
    told = Outcome(good.folder, (), good.baseline, good.checked, [row], {"eager": figures, "candidate": figures})
    lines = "\n".join(table(told))
    assert "batch 1, on the GPU:" in lines
    assert "the same file with its zeros multiplied" in lines
    assert "GPU memory: 2.0 MiB (eager fp32: 2.0)" in lines
    assert metrics(told)["compress/speedup_dense_b1_t1"] == row["speedup_dense"]


def test_the_file_runs_on_a_processor_too(good: Outcome) -> None:
    page, place = read_page(good.folder / "artifact"), good.folder / "artifact"
    inputs = torch.rand(5, 64).numpy()
    with pretended_gpu():
        wanted = open_folder(place, page.format, page.needed, target="cuda")(inputs)
    found = open_folder(place, page.format, page.needed)(inputs)
    assert fidelity(found, wanted, "value")["sqnr_db"] > 45


def test_without_a_gpu_a_file_for_one_is_not_judged(good: Outcome) -> None:
    found = _ask("check", [str(good.folder / "artifact")])
    assert found["error"] == "target: cuda is an NVIDIA GPU, and torch sees none here"


def test_a_gpu_that_cannot_is_told_so() -> None:
    with pytest.raises(NotAbleError, match="torch sees none here"):
        require_gpu("2:4")
    with pretended_gpu():
        require_gpu("2:4")
        require_gpu("float8")
    old = r"this GPU has compute capability 7\.5; products that skip two of every four weights begin at 8\.0 \(Ampere\)"
    with pretended_gpu(capability=(7, 5)), pytest.raises(NotAbleError, match=old):
        require_gpu("2:4")
    with pretended_gpu(capability=(8, 0)), pytest.raises(NotAbleError, match=r"float8 begin at 8\.9"):
        require_gpu("float8")


def refuse(weight: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("not supported\non this GPU")


def swapped(weight: torch.Tensor) -> torch.Tensor:
    """A weight with two of its rows in each other's place."""
    weight = weight.clone()
    weight[[4, 5]] = weight[[5, 4]]
    return pack(weight)


@pytest.mark.parametrize(
    ("packs", "reasons"),
    [
        ({"one": refuse}, "one: not supported"),
        ({"one": refuse, "other": swapped}, "one: not supported; other: a product of it is wrong"),
        ({"rolled": lambda weight: pack(weight.roll(4, 1))}, "rolled: a product of it is wrong"),
        ({"zero": torch.zeros_like}, "zero: a product of it is wrong"),
    ],
)
def test_a_library_that_multiplies_wrongly_is_not_used(packs: dict[str, Any], reasons: str, good: Outcome) -> None:
    with pretended_gpu(packs=packs):
        with pytest.raises(NotAbleError) as caught:
            require_gpu("2:4")
        assert f"({reasons})" in caught.value.message
        with pytest.raises(NotAbleError, match="does not skip two of every four weights on this GPU"):
            open_folder(good.folder / "artifact", "program", target="cuda")
    with pretended_gpu(packs=packs | {"last": pack}):
        require_gpu("2:4")
        assert pack_of(CPU) is pack


def test_it_is_told_so_before_any_step_trains(tmp_path: Path) -> None:
    with pretended_gpu(packs={"one": refuse}):
        trained = make_trained(load_spec(job(WIDE, steps=STEPS)), epochs=0)
        outcome = compress(trained, tmp_path / "compress", timed=False)
    assert "does not skip two of every four weights on this GPU" in outcome.error
    assert outcome.steps == ()


def test_widths_that_do_not_fit_are_told_before_other_steps_train(tmp_path: Path) -> None:
    with pretended_gpu():
        trained = make_trained(load_spec(job({**WIDE, "hidden": [100, 100]}, steps=STEPS)), epochs=0)
        outcome = compress(trained, tmp_path / "compress", timed=False)
    assert outcome.error.startswith("0% of the weights are in linear layers that can be kept as 2:4")
    assert outcome.steps == ()


def test_a_model_whose_layers_do_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    trained = masked("mlp")
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.Linear(96, 32)).eval().requires_grad_(False)
    dense[2].weight.data = zeroed(dense[2].weight.data)  # 96 inputs are no multiple of 64
    with pytest.raises(ExportError, match="no linear layer has zeros in two of every four weights and sizes that"):
        to_sparse(dense, context_of(trained, tmp_path))


def on(num_gpus: int, capability: tuple[int, int] | None = None) -> Available:
    """Return a machine with or without GPUs."""
    return Available(2.0, num_gpus, 1 << 34, capability=capability)


def refused(model: dict[str, Any], steps: list[dict[str, Any]], here: Available) -> str:
    with pytest.raises((JobFileError, PlanError)) as caught:
        build_plan(load_spec(job(model, steps=steps)), Available.unknown(), here=here)
    return "\n".join(f"{each.path}: {each.message} [{each.hint}]" for each in caught.value.problems)


@pytest.mark.parametrize(
    ("model", "steps", "words"),
    [
        (WIDE, [PRUNE, EXPORT, {**QUANTISE, "target": "cpu"}], "target: torch's operators that skip two of every four"),
        (WIDE, [EXPORT, QUANTISE], "no step makes the others zero [put `prune` with kind: 2:4 before export"),
        (WIDE, [{"use": "prune", "kind": "unstructured"}, EXPORT, QUANTISE], "no step makes the others zero"),
        ({**WIDE, "hidden": [16]}, [PRUNE, EXPORT, QUANTISE], "has 1040 weights: the kernels take no fewer than 2048"),
        (MODELS["moe"], [PRUNE, EXPORT, QUANTISE], "moe is made of experts that lie in one tensor"),
        ({"use": "cnn", "channels": [16, 32]}, [PRUNE, EXPORT, QUANTISE], "cnn is made of convolutions"),
        (WIDE, [PRUNE, EXPORT, {**QUANTISE, "group": 64}], "group means nothing for 2:4"),
        (WIDE, [{"use": "export"}, {"use": "quantise", "target": "cuda"}], "int8-static in onnx runs on the processor"),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(
    model: dict[str, Any], steps: list[dict[str, Any]], words: str
) -> None:
    assert words in refused(model, steps, on(1, (9, 0)))


@pytest.mark.parametrize("scheme", ["float8", "2:4"])
def test_a_machine_without_a_gpu_is_told_when_the_job_is_read(scheme: str) -> None:
    text = refused(WIDE, [PRUNE, EXPORT, {**QUANTISE, "scheme": scheme}], on(0))
    assert "compress.steps.2.target: the file is judged on an NVIDIA GPU of this machine, which has none" in text
    assert {"float8": "or write target: cpu", "2:4": "write int8-static"}[scheme] in text


def test_a_gpu_that_is_too_old_is_told_when_the_job_is_read() -> None:
    text = refused(WIDE, [PRUNE, EXPORT, QUANTISE], on(1, (7, 5)))
    assert "compress.steps.2.target: this GPU has compute capability 7.5" in text


def test_ranks_are_not_asked_what_the_machine_that_compresses_has() -> None:
    """They plan the job anew where they are: on nodes without a GPU, or with those that others use hidden."""
    spec = load_spec(job(WIDE, steps=STEPS))
    assert build_plan(spec, Available.unknown()).num_params
    assert build_plan(spec, on(0)).num_params


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_the_command_asks_the_machine_where_it_runs(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    data = job(WIDE, steps=STEPS)
    data["cluster"] |= {"address": address} if address else {}
    monkeypatch.setattr(Available, "local", classmethod(lambda cls: on(0)))
    with pytest.raises(PlanError) as caught:
        api.check(data)
    assert "which has none" in caught.value.problems[0].message
    monkeypatch.setattr(Available, "local", classmethod(lambda cls: on(1, (9, 0))))
    api.check(data)


@pytest.mark.parametrize("scheme", ["float8", "2:4"])
def test_layers_without_anything_between_them_are_taken(scheme: str, tmp_path: Path) -> None:
    """As the thin pairs of `lowrank` are: one layer reads another that was replaced before it."""
    pair = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval().requires_grad_(False)
    for layer in pair:
        layer.weight.data = zeroed(layer.weight.data)
    program, layers = {"float8": to_float8, "2:4": to_sparse}[scheme](pair, context_of(masked("mlp"), tmp_path))
    assert layers == 2
    inputs = torch.rand(5, 64)
    assert fidelity(program.module()(inputs).numpy(), pair(inputs).numpy(), "value")["sqnr_db"] > 20


class Deep(nn.Module):
    """A weight that is made of itself twice, many times over: of the input, or of a stored one in any type."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter(torch.zeros(64, 64, dtype=dtype or torch.float32), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.dtype else x
        for _ in range(60):
            weight = weight + weight.flip(0)
        rows = cast(x, self.dtype or torch.float32)
        return cast(nn.functional.linear(rows, weight), torch.float32)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_deep_graph_is_walked_once(dtype: torch.dtype | None) -> None:
    """Not two to the power of its depth."""
    program = torch.export.export(Deep(dtype), (torch.rand(64, 64),))
    begun = time.monotonic()
    assert skip_zeros(program.module(), CPU) == 0
    assert sparse_facts(program).products == 0
    assert time.monotonic() - begun < 20


class Counting(nn.Module):
    """A weight that is multiplied by a number which grows with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(zeroed(torch.ones(32, 64)).bfloat16(), requires_grad=False)
        self.register_buffer("count", torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.mul_(2.0)
        return nn.functional.linear(cast(x, torch.bfloat16), self.weight * self.count)


def test_opening_a_program_changes_nothing_in_it() -> None:
    module = torch.export.export(Counting(), (torch.rand(2, 64),)).module()
    before = {name: value.clone() for name, value in module.named_buffers()}
    assert skip_zeros(module, CPU) == 0
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())


def test_what_weights_were_made_of_takes_no_memory_once_they_are_ready(tmp_path: Path) -> None:
    """Counted without the collector of cycles, which may not run for hours."""
    width, layers = 512, 8
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).eval().requires_grad_(False)
    for layer in model:
        layer.weight.data = zeroed(layer.weight.data)
    program, taken = to_sparse(model, WideContext(width))
    save_program(program, tmp_path / "model.pt2")
    content = (tmp_path / "model.pt2").read_bytes()
    del program, model, layer
    gc.collect()
    gc.disable()
    try:
        before = live_bytes()
        run = RUNTIME.open({"model.pt2": content})
        grown = live_bytes() - before
    finally:
        gc.enable()
    assert (taken, run(torch.rand(2, width).numpy()).shape) == (layers, (2, width))
    assert grown < 1.2 * layers * 2 * width * width  # in bfloat16, zeros put back


class WideContext(Context):
    """Calibration samples of a width."""

    def __init__(self, width: int) -> None:
        object.__setattr__(self, "width", width)

    def calibration(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(4, self.width), torch.zeros(4)


def live_bytes() -> int:
    """Return the bytes of all tensors that anything still holds; one that several share is counted once."""
    found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu"]
    real = [each for each in found if type(each) in (torch.Tensor, nn.Parameter)]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in real}.values())


def test_a_layer_on_a_single_vector_stays_as_it_is(tmp_path: Path) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.first = nn.Parameter(torch.rand(64), requires_grad=False), nn.Linear(64, 64)
            self.second = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.second(x) + self.first(self.query)
            return found

    model = Learned().eval().requires_grad_(False)
    for layer in (model.first, model.second):
        layer.weight.data = zeroed(layer.weight.data)
    for make in (to_float8, to_sparse):
        program, layers = make(model, WideContext(64))
        assert layers == 1
        assert program.module()(torch.rand(3, 64)).shape == (3, 64)


@pytest.mark.parametrize("format", ["onnx", "openvino", "aoti", "safetensors"])
def test_formats_that_cannot_say_which_can(format: str) -> None:
    text = refused(WIDE, [PRUNE, {"use": "export", "format": format}, QUANTISE], on(1))
    assert f"{format} cannot be made 2:4: of the runtimes here torch alone skips two of every four weights" in text
    assert "2:4 can be had as program" in text


def test_float8_may_be_judged_on_a_gpu(tmp_path: Path) -> None:
    steps = [EXPORT, {"use": "quantise", "scheme": "float8", "target": "cuda"}]
    with pretended_gpu():
        trained = make_trained(load_spec(job(WIDE, steps=steps)), epochs=2)
        outcome = compress(trained, tmp_path / "compress", timed=False)
    assert outcome.ok, outcome.error
    assert read_page(outcome.folder / "artifact").target == "cuda"
    assert (outcome.checked["float8_operators"], outcome.checked["sparse_operators"]) == (3, 0)
