"""Zeros among the activations, and no trace of having looked."""

from __future__ import annotations

import copy
import gc
import hashlib
import io
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from otf_core.telemetry.activations import ActivationZeroTracker, makes_zeros


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def fraction(model: nn.Module, *inputs: Tensor) -> float | None:
    with ActivationZeroTracker() as tracker:
        tracker.arm(model)
        model(*inputs)
        found = tracker.disarm()
    assert hooks(model) == 0
    if found is None:
        return None
    assert found.shape == ()
    assert found.dtype is torch.float32
    assert not found.requires_grad
    return float(found.item())


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), 0.5),
        (nn.ReLU(inplace=True), 0.5),
        (nn.ReLU6(), 0.5),
        (nn.Hardtanh(0.0, 1.0), 0.5),
        (nn.Hardtanh(-1.0, 0.0), 0.5),
        (nn.Hardtanh(), None),
        (nn.Threshold(0.1, 0.0), 0.5),
        (nn.Threshold(0.1, -1.0), None),
        (nn.Hardswish(), 0.25),
        (nn.Hardsigmoid(), 0.25),
        (nn.Softshrink(0.5), 0.5),
        (nn.Hardshrink(0.5), 0.5),
        (nn.LeakyReLU(), None),
        (nn.RReLU(), None),
        (nn.GELU(), None),
        (nn.Dropout(1.0), None),
        (nn.Identity(), None),
    ],
)
def test_the_fraction_is_that_of_exact_zeros_of_the_modules_that_make_them(
    module: nn.Module, expected: float | None
) -> None:
    # Below -3, just below 0, above it, above 3.
    x = torch.tensor([-4.0, -0.3, 0.4, 5.0])
    assert makes_zeros(module) == (expected is not None)
    assert fraction(module, x) == expected


def test_all_modules_count_by_their_elements() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten(0), nn.ConstantPad1d((0, 6), 1.0), nn.ReLU())
    # First 1 of 2 zero, then 1 of 8.
    assert fraction(model, torch.tensor([[-1.0, 1.0]])) == pytest.approx(0.2)


def test_a_module_used_several_times_counts_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.again = self.act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x) + self.again(-x - 3.0)  # type: ignore[no-any-return]

    # 1 of 4 below zero, and of -x - 3 all four.
    assert fraction(Twice(), torch.tensor([-1.0, 1.0, 2.0, 3.0])) == 0.625


def test_a_module_that_two_others_share_gets_one_hook() -> None:
    act = nn.ReLU()
    model, tracker = (
        nn.ModuleList([nn.Sequential(act), nn.Sequential(act)]),
        ActivationZeroTracker(),
    )
    tracker.arm(model)
    assert hooks(model) == 1
    tracker.disarm()


def test_not_a_number_is_no_zero() -> None:
    assert fraction(nn.ReLU(), torch.tensor([float("nan"), -1.0])) == 0.5


def test_without_such_a_module_or_without_a_forward_there_is_no_fraction() -> None:
    assert fraction(nn.Linear(2, 2), torch.ones(1, 2)) is None
    assert fraction(nn.ReLU(), torch.empty(0)) is None
    assert fraction(nn.ReLU(), torch.ones(2, device="meta")) is None
    tracker = ActivationZeroTracker()
    assert tracker.disarm() is None
    tracker.arm(nn.ReLU())
    assert tracker.disarm() is None


def test_the_default_dtype_of_the_user_does_not_matter() -> None:
    torch.set_default_dtype(torch.float16)
    try:
        found = fraction(nn.ReLU(), torch.full((100_000,), -1.0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == 1.0


def test_armed_again_the_first_count_is_thrown_away() -> None:
    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    model(torch.tensor([-1.0]))
    tracker.arm(model)
    assert hooks(model) == 1
    model(torch.tensor([1.0, -1.0]))
    found = tracker.disarm()
    assert found is not None
    assert found.item() == 0.5
    assert not tracker.armed


def run(tracker: ActivationZeroTracker, model: nn.Module) -> None:
    tracker.arm(model)
    assert hooks(model) == 1
    model(torch.ones(1, 2))


def test_a_block_that_raises_leaves_no_hook() -> None:
    model, tracker = nn.Sequential(nn.ReLU(), nn.Linear(3, 1)), ActivationZeroTracker()
    with pytest.raises(RuntimeError), tracker:
        run(tracker, model)
    assert hooks(model) == 0
    assert not tracker.armed


def test_no_activation_is_kept_and_none_is_changed() -> None:
    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    out = model(x)
    assert out.grad_fn is not None
    assert out.tolist() == [0.0, 2.0]
    gone = weakref.ref(out)
    del out
    gc.collect()
    assert gone() is None
    tracker.disarm()


def test_no_random_number_is_drawn_and_the_grad_mode_stays() -> None:
    before = torch.get_rng_state()
    fraction(nn.Sequential(nn.ReLU(), nn.Hardswish()), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(4 * 36, 8), nn.ReLU6(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))  # type: ignore[no-any-return]


def trained(tracker: ActivationZeroTracker | None) -> tuple[str, list[float]]:
    """Digest of weights, buffers, optimizer, RNG and losses; and the fractions seen."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    digest, seen = hashlib.sha256(), []
    for step in range(6):
        x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
        if tracker is not None and step % 2 == 0:
            tracker.arm(model)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found = tracker.disarm() if tracker is not None else None
        if found is not None:
            seen.append(found.item())
        digest.update(loss.detach().numpy().tobytes())
    state = [*model.state_dict().values(), torch.get_rng_state()]
    for slot in optimizer.state_dict()["state"].values():
        state += [value for value in slot.values() if isinstance(value, Tensor)]
    for tensor in state:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest(), seen


def test_training_is_bit_for_bit_the_same_with_and_without() -> None:
    bare, _ = trained(None)
    watched, seen = trained(ActivationZeroTracker())
    assert watched == bare
    assert len(seen) == 3
    assert all(0.0 < found < 1.0 for found in seen)


def test_a_compiled_module_and_all_inside_it_is_left_alone() -> None:
    inner = nn.Sequential(nn.ReLU())
    compiled: Any = torch.compile(nn.Sequential(nn.ReLU(), inner), backend="eager")
    in_place = nn.Sequential(nn.ReLU())
    in_place.compile(backend="eager")
    by_forward = nn.Sequential(nn.ReLU())
    by_forward.forward = torch.compile(by_forward.forward, backend="eager")  # type: ignore[method-assign]
    marked = nn.Sequential(nn.ReLU())
    marked._compiler_ctx = {"compiler": "dynamo"}  # type: ignore[assignment]
    unmarked = nn.Sequential(nn.ReLU())
    unmarked._compiler_ctx = None  # type: ignore[assignment]
    model = nn.ModuleList([compiled, in_place, by_forward, marked, unmarked])
    tracker = ActivationZeroTracker()
    tracker.arm(model)
    assert hooks(model) == 1
    assert hooks(unmarked) == 1
    tracker.disarm()


def test_a_hook_that_is_compiled_after_all_adds_nothing_to_the_graph() -> None:
    model, tracker = nn.Sequential(nn.ReLU()), ActivationZeroTracker()
    nodes: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nodes.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward

    tracker.arm(model)

    def forward(x: Tensor) -> Tensor:  # no module, so that nothing says it is compiled
        return model(x)  # type: ignore[no-any-return]

    compiled = torch.compile(forward, backend=backend, fullgraph=True)
    assert compiled(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]
    assert nodes == [1]
    assert tracker.disarm() is None


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.13 on scripting
def test_a_scripted_module_is_left_alone_and_a_trace_does_not_hold_the_counting() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    assert fraction(nn.Sequential(scripted), torch.ones(2)) is None
    model, tracker = nn.Sequential(nn.ReLU()), ActivationZeroTracker()
    tracker.arm(model)
    traced = torch.jit.trace(model, torch.ones(2), check_trace=False)  # type: ignore[no-untyped-call]
    assert "count_nonzero" not in str(traced.inlined_graph)
    assert tracker.disarm() is None


def test_the_fast_path_of_a_transformer_in_eval_mode_is_not_switched_off() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    model = nn.ModuleList([layer, nn.ReLU()])
    tracker = ActivationZeroTracker()
    tracker.arm(model)
    assert hooks(layer) == 0
    assert hooks(model) == 1
    tracker.disarm()


def test_replicas_on_threads_of_their_own_count_together() -> None:
    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    replicas = [model._replicate_for_data_parallel() for _ in range(2)]  # type: ignore[no-untyped-call]
    inputs = [torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, -1.0])]
    threads = [
        threading.Thread(target=replica, args=(x,), name=f"replica-{n}")
        for n, (replica, x) in enumerate(zip(replicas, inputs, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = tracker.disarm()
    assert found is not None
    assert found.item() == 0.75


def test_a_forward_inside_vmap_is_not_counted() -> None:
    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    torch.vmap(model)(torch.ones(2, 3))
    assert tracker.disarm() is None


@pytest.mark.parametrize("by_pickle", [False, True])
def test_a_copy_made_while_armed_carries_nothing_along(by_pickle: bool) -> None:
    model, tracker = nn.Sequential(nn.ReLU()), ActivationZeroTracker()
    tracker.arm(model)
    if by_pickle:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = copy.deepcopy(model)
    assert twin(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]
    assert tracker.disarm() is None
    assert hooks(model) == 0


def test_what_cannot_be_counted_gives_none_and_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    model, tracker = nn.ReLU(), ActivationZeroTracker()
    tracker.arm(model)
    model(torch.ones(1))
    monkeypatch.setattr(torch, "count_nonzero", full)
    model(torch.ones(1))
    assert tracker.disarm() is None


def test_the_cost_is_the_time_of_hooks_and_of_arming_without_the_forward() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    model, tracker = nn.ReLU(), ActivationZeroTracker(clock=clock)
    assert tracker.cost_s == 0.0
    tracker.arm(model)
    now[0] += 100.0
    model(torch.ones(1))
    now[0] += 100.0
    tracker.disarm()
    assert tracker.cost_s == 3.0
