"""Models, optimizers and tensors come back in place, and stay each other's."""

# ruff: noqa: E501 -- tables of scripts

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from otf_core.script import graphs
from tests.script.again import goes_on

START = "import copy, torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
DIGEST = "def d(*ts): return [t.detach().double().sum().item().hex() for t in ts]\n"

# Schedulers that are made in the loop, and what they ask for.
LATER = {
    "lr_scheduler.StepLR": "2",
    "lr_scheduler.MultiStepLR": "[1, 3]",
    "lr_scheduler.ConstantLR": "",
    "lr_scheduler.LinearLR": "",
    "lr_scheduler.ExponentialLR": "0.5",
    "lr_scheduler.PolynomialLR": "3",
    "lr_scheduler.CosineAnnealingLR": "3",
    "lr_scheduler.CosineAnnealingWarmRestarts": "2",
    "lr_scheduler.ReduceLROnPlateau": "patience=0",
    "swa_utils.SWALR": "0.01, anneal_epochs=3",
}
# name -> what is there before the loop, what each turn changes, what is told of it.
KINDS: dict[str, tuple[str, str, str]] = {
    "tensor": ("x = torch.zeros(3)", "x += turn", "x"),
    "number in a tensor": ("x = torch.tensor(0.)", "x = x + turn", "x"),
    "half precision": ("x = torch.ones(3).bfloat16()", "x = x * 1.1", "x.dtype, x.float()"),
    "strides": ("x = torch.arange(6.).reshape(2, 3).t()", "x = x * 2", "x, x.stride()"),
    "nothing in it": ("x = torch.empty(0, 3)", "x = torch.empty(turn, 0)", "x.shape"),
    "two names": ("x = torch.zeros(3); y = x", "y += turn", "x, x is y"),
    "two that were one": ("x = torch.zeros(3); y = x", "y = y + turn", "x, y, x is y"),
    "a view": ("x = torch.zeros(4); y = x[1:3]", "y += turn; x += 1", "x, y"),
    "views that were others": (
        "x = torch.arange(8.); y = x[:2]",
        "y = x[turn : turn + 2]; y += 10",
        "x, y",
    ),
    "a view of a parameter": (
        "net = nn.Linear(2, 2); y = net.weight.data",
        "y *= 0.5; net.weight.data += 1",
        "net.weight, y.data_ptr() == net.weight.data_ptr()",
    ),
    "best weights": (
        "net = nn.Linear(2, 2); best = net.state_dict()",
        "net.weight.data += 1\nif turn == 1: best = copy.deepcopy(net.state_dict())",
        "d(best['weight'], net.weight), best['weight'].data_ptr() == net.weight.data_ptr()",
    ),
    "leaf with a gradient": (
        "x = torch.ones(2, requires_grad=True)",
        "(x * turn).sum().backward(); x.data += 1",
        "x, x.grad, x.requires_grad",
    ),
    "a gradient that goes": (
        "x = torch.ones(2, requires_grad=True); x.sum().backward()",
        "x.grad = None if turn % 2 else torch.ones(2)",
        "x.grad",
    ),
    "a loss of the last turn": (
        "x = torch.ones(2, requires_grad=True); loss = None",
        "before = loss; loss = (x * turn).sum(); loss.backward()",
        "before is None or before.item(), loss.item()",
    ),
    "modes and gradients wanted": (
        "net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())",
        "net[1].train(turn % 2 == 0); net[0].bias.requires_grad_(turn % 2 == 0)",
        "net.training, net[1].training, net[0].bias.requires_grad",
    ),
    "buffers": (
        "net = nn.BatchNorm1d(2); net.register_buffer('b', torch.zeros(1), persistent=False)",
        "net.b += turn; net(torch.randn(4, 2))",
        "net.b, d(net.running_var), net.num_batches_tracked",
    ),
    "attributes of a module": (
        "class Net(nn.Module):\n  def __init__(self):\n    super().__init__()\n"
        "    self.n, self.seen, self.net = 0, [], nn.Linear(2, 2)\n    self.t = torch.zeros(1)\nnet = Net()",
        "net.n += 1; net.seen.append(turn); net.t = net.t + turn; net.late = turn",
        "net.n, net.seen, net.t, net.late",
    ),
    "tied weights": (
        "a, b = nn.Linear(2, 2), nn.Linear(2, 2); b.weight = a.weight; net = nn.Sequential(a, b)",
        "net[0].weight.data += turn",
        "net[1].weight, net[1].weight is a.weight is net[0].weight",
    ),
    "a part under its own name": (
        "net = nn.Sequential(nn.Linear(2, 2)); first = net[0]; w = first.weight",
        "first.weight.data += turn",
        "w, first is net[0], w is net[0].weight",
    ),
    "a part that comes": (
        "net = nn.Sequential(nn.Linear(2, 2))",
        "net.append(nn.Linear(2, 2))",
        "len(net), d(*net.parameters())",
    ),
    "a part that goes": (
        "net = nn.ModuleDict({str(n): nn.Linear(2, 2) for n in range(4)})",
        "del net[str(turn)]",
        "list(net), d(*net.parameters())",
    ),
    "a copy made later": (
        "net, kept = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), None",
        "net[0].weight.data += 1\nif turn == 0: kept = copy.deepcopy(net)",
        "d(*net.parameters()), d(*kept.parameters()), kept(torch.ones(1, 2)).shape",
    ),
    "an optimizer of the model's parameters": (
        "net = nn.Linear(2, 2); opt = torch.optim.Adam(net.parameters(), lr=0.1)",
        "net(torch.randn(3, 2)).sum().backward(); opt.step(); opt.param_groups[0]['lr'] *= 0.5",
        "d(*net.parameters()), opt.param_groups[0]['lr'], len(opt.state), "
        "opt.param_groups[0]['params'][0] is net.weight",
    ),
    "an optimizer of a bare tensor": (
        "x = torch.ones(2, requires_grad=True); opt = torch.optim.SGD([x], lr=0.1, momentum=0.9)",
        "opt.zero_grad(); (x * x).sum().backward(); opt.step()",
        "x, opt.param_groups[0]['params'][0] is x",
    ),
    "a group that comes": (
        "a, b = nn.Linear(2, 2), nn.Linear(2, 2); opt = torch.optim.Adam(a.parameters())",
        "if turn == 1: opt.add_param_group({'params': list(b.parameters()), 'lr': 0.5})\n"
        "(a(torch.randn(1, 2)) + b(torch.randn(1, 2))).sum().backward(); opt.step()",
        "d(*a.parameters(), *b.parameters()), len(opt.param_groups)",
    ),
    "a rate in a tensor": (
        "x = torch.ones(2, requires_grad=True); opt = torch.optim.SGD([x], lr=torch.tensor(0.1))",
        "x.sum().backward(); opt.step(); opt.param_groups[0]['lr'] *= 0.5",
        "x, opt.param_groups[0]['lr']",
    ),
    "LBFGS": (
        "x = torch.ones(4, requires_grad=True); opt = torch.optim.LBFGS([x], max_iter=2)\n"
        "def closure():\n  opt.zero_grad(); loss = ((x - 3) ** 4).sum(); loss.backward(); return loss",
        "loss = opt.step(closure).item()",
        "x, loss",
    ),
    "schedules": (
        "x = torch.ones(2, requires_grad=True); opt = torch.optim.SGD([x], lr=0.1)\n"
        "s = torch.optim.lr_scheduler.SequentialLR(opt, [torch.optim.lr_scheduler.LinearLR(opt), "
        "torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)], [2])",
        "x.sum().backward(); opt.step(); s.step()",
        "x, s.get_last_lr(), s.last_epoch",
    ),
    "an average": (
        "net = nn.Linear(2, 2); ema = torch.optim.swa_utils.AveragedModel(net)",
        "net.weight.data += turn; ema.update_parameters(net)",
        "d(*ema.parameters()), ema.n_averaged",
    ),
    "an average of one's own": (
        "class Ema:\n  def __init__(self, net): self.net = net; "
        "self.shadow = {n: p.detach().clone() for n, p in net.named_parameters()}\n"
        "net = nn.Linear(2, 2); ema = Ema(net)",
        "net.weight.data += turn\nfor n, p in net.named_parameters(): ema.shadow[n].lerp_(p.detach(), 0.5)",
        "d(*ema.shadow.values()), ema.net is net",
    ),
    **{
        f"{name}, made later": (
            "net = nn.Linear(2, 1); x = None; opt = torch.optim.SGD(net.parameters(), 0.1)",
            f"if turn == 0: x = torch.optim.{name}(opt, {args})\n"
            f"net(torch.ones(2)).backward(); opt.step(); x.step({'1.' if 'Plateau' in name else ''})",
            "opt.param_groups[0]['lr'], x.last_epoch, x.optimizer is opt",
        )
        for name, args in LATER.items()
    },
    "numbers of torch": ("x = 0", "x = float(torch.rand(1)); y = nn.Linear(1, 1).weight.item()", "x, y"),
}  # fmt: skip


def source(setup: str, change: str, told: str) -> str:
    inside = change.replace("\n", "\n    ")
    return (
        f"{START}{DIGEST}{setup}\nfor turn in range(4):\n    here()\n    {inside}\n"
        f"    LOG.append(repr(({told},)))\n"
    )


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_on(kind: str, at: int, tmp_path: Path) -> None:
    found = goes_on(source(*KINDS[kind]), tmp_path, at)
    assert found.given.lost == []
    assert found.on == found.whole  # the log is a variable as well
    assert found.taken.reasons == []
    assert found.taken.left_out == []


LARGE = "import numpy as np\nt = torch.full((600, 600), 1.)\na = np.ones(1 << 18)\nl = list(range(20000))\ns = 'ab' * (1 << 20)"


def test_what_is_large_and_was_not_touched_is_made_again(tmp_path: Path) -> None:
    found = goes_on(source(LARGE, "x = turn", "float(t.sum()), len(l), len(s)"), tmp_path)
    assert sorted(found.taken.made_again) == ["a", "l", "s", "t"]
    assert found.on == found.whole
    assert found.given.lost == []
    assert "v" not in found.taken.state["nodes"][found.taken.state["variables"][0]["t"]["n"]]


@pytest.mark.parametrize(
    "touch", ["t[0, 0] += 1", "t.data[3, 3] = 7", "a[5] += 1", "l.append(turn)", "l[3] = -1"]
)
def test_what_is_large_and_was_touched_is_saved(touch: str, tmp_path: Path) -> None:
    told = "t.sum().item(), a.sum(), sum(l)"
    found = goes_on(source(LARGE, touch, told), tmp_path)
    assert found.on == found.whole
    assert touch[0] not in found.taken.made_again
    assert found.given.lost == []


def test_large_data_that_the_script_makes_otherwise_is_told(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("1")
    setup = f"n = int(__import__('pathlib').Path({str(given)!r}).read_text())\nt = torch.full((600, 600), n)\nl = [n] * 20000"
    found = goes_on(source(setup, "x = turn", "x"), tmp_path, between=lambda: given.write_text("2"))
    assert found.given.lost == [
        "a Tensor of 2,880,000, which the script makes and has made otherwise",
        "a list of 20,000, which the script makes and has made otherwise",
    ]


WRAPPERS = """
import torch
class Wraps(torch.optim.Optimizer):
    def __init__(self, inner): self.optimizer, self.steps = inner, 0
    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    def state_dict(self): raise AttributeError("not by me")
    def load_state_dict(self, state): raise AttributeError("not by me")
    def step(self, closure=None):
        self.steps += 1
        self.optimizer.step(closure)
class Odd:
    def state_dict(self): raise AttributeError("not yet")
    def load_state_dict(self, state): pass
"""


def test_a_librarys_wrapper_goes_on_and_what_cannot_tell_its_state_is_named(tmp_path: Path) -> None:
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "wrapping_of_a_test.py").write_text(WRAPPERS)
    setup = (
        f"import sys; sys.path.insert(0, {str(library)!r}); import wrapping_of_a_test as w; sys.path.pop(0)\n"
        "net, odd = nn.Linear(2, 2), w.Odd(); opt = w.Wraps(torch.optim.Adam(net.parameters(), lr=0.1))"
    )
    change = "net(torch.randn(3, 2)).sum().backward(); opt.step()"
    found = goes_on(source(setup, change, "d(*net.parameters()), opt.steps"), tmp_path)
    assert found.on == found.whole
    assert found.given.lost == []
    assert found.taken.left_out == ["odd (Odd)"]


def test_what_is_compiled_in_a_script_of_modules_goes_on(tmp_path: Path) -> None:
    setup = (
        "class Net(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.inside = nn.Linear(2, 1)\n"
        "    def forward(self, x): return self.inside(x)\n"
        "net = torch.compile(Net(), backend='eager'); net(torch.ones(3, 2)).sum().backward()\n"
        "opt = torch.optim.SGD(net.parameters(), 0.1)"
    )
    change = "opt.step(); y = net(torch.ones(3, 2)).sum(); y.backward()"
    found = goes_on(source(setup, change, "y.item()"), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole


GRAPHS = """
x = torch.ones(3); net = nn.Linear(3, 3); h = total = torch.zeros(3)
for turn in range(4):
    {turn}
    here()
    LOG.append(h.tolist())
"""
BOUND = "h is bound to earlier steps by its graph, which is not stored (detach it)"


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ("h = torch.tanh(net(x) + h)", [BOUND]),  # truncated backpropagation, without the detach
        ("h = h * 0.5 + net(x)", [BOUND]),
        ("h = torch.tanh(net(x) + h.detach())", ["h (graph of a Tensor)"]),  # used later, or not
        ("h = torch.tanh(net(x) + h.detach()); h.sum().backward()", []),
        ("h = torch.tanh(net(x)).sum(); h.backward(); total = total + h", []),  # a sum of losses
        ("h = torch.tanh(net(x) + h.detach()).detach()", []),
        ("h = net(x).argmax()", []),
    ],
)
def test_a_graph_that_lives_on_is_told(turn: str, told: list[str], tmp_path: Path) -> None:
    found = goes_on(START + GRAPHS.format(turn=turn), tmp_path)
    assert [*found.taken.reasons, *found.taken.left_out] == told


def test_a_graph_without_an_end_is_looked_at_for_so_long() -> None:
    w = torch.ones(1, requires_grad=True)
    h = w * 1
    for _ in range(5000):
        h = h + w
    assert graphs.lives_on(h, 0) is None
    assert graphs.lives_on(h, graphs.now()) is True
