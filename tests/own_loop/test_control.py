"""What is particular to a loop that somebody else owns: stop, ends, functions, arguments."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import otf_core
from tests.own_loop.loops import Loop, made
from tests.own_loop.rig import Barrier, running
from tests.state.trainings import rows

pytestmark = pytest.mark.usefixtures("queues_have_ended")


class Ignoring(Loop):
    """Does not look at what tick returns."""

    returned: list[bool]

    def train(self, session: Any) -> None:
        self.returned = []
        for epoch in session.epochs(2):
            self.net.train()
            for batch in self.loader:
                self.returned.append(self.batch(session, batch))
            self.end(session, epoch)


def test_a_stop_that_the_loop_does_not_heed_is_refused_and_it_trains_on(tmp_path: Path) -> None:
    barrier, loop = Barrier(2, 5), Ignoring()
    with running(loop, tmp_path, barrier) as run:
        barrier.wait_for(2)
        asked = run.dashboard.send("stop")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(2)
        reply = run.dashboard.reply_to(asked)
        assert (reply["ok"], reply["code"], reply["detail"]) == (
            False,
            "not_allowed_now",
            "stop refused: the loop has trained on for 2 batches after tick returned True; "
            "allowed: if session.tick(…): break",
        )
        barrier.wait_for(5)
        paused = run.dashboard.send("pause")
        run.dashboard.expect("accepted", request_id=paused)
        barrier.let_go(5)
        assert run.dashboard.reply_to(paused)["data"]["step"] == 5
        assert run.dashboard.request("resume")["ok"]
        run.wait()
        finished = run.dashboard.expect("trainingFinished")
    assert loop.returned == [n in (2, 3) for n in range(1, 13)]
    assert (finished["status"], finished["step"]) == ("completed", 12)
    bare = Ignoring().bare()
    assert loop.digest() == bare.digest()


def test_a_stop_holds_where_the_loop_ends_within_the_patience(tmp_path: Path) -> None:
    barrier, loop = Barrier(6), Ignoring()
    with running(loop, tmp_path, barrier) as run:
        barrier.wait_for(6)
        asked = run.dashboard.send("stop")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(6)
        assert run.dashboard.reply_to(asked)["data"]["step"] == 6
        run.wait()
        assert run.dashboard.expect("trainingFinished")["status"] == "stopped"
        kinds = [event["type"] for event in run.dashboard.events()]
    assert loop.n == 6  # session.epochs gave no other epoch
    assert "epoch_end" not in kinds


class Counted(TensorDataset):
    """Its samples depend on how many were read."""

    def __init__(self, n: int) -> None:
        super().__init__(*rows(n).tensors)
        self.seen = 0

    def __getitem__(self, index: Any) -> Any:
        self.seen += 1
        x, y = super().__getitem__(index)
        return x + 0.01 * self.seen, y


def test_an_evaluation_of_the_users_leaves_no_trace(tmp_path: Path) -> None:
    class Careless(Loop):
        def build(self) -> None:
            self.best = [9.0]
            self.loader = DataLoader(Counted(22), batch_size=4, shuffle=True)
            self.val_loader = DataLoader(Counted(8), batch_size=4)

        def more(self) -> dict[str, Any]:
            put: Callable[[Any], None] = lambda value: self.best.__setitem__(0, value)  # noqa: E731
            return {
                "state": {"best": (lambda: self.best[0], put)},
                "validate": self.careless,
                "test": lambda: {"test_acc": torch.tensor(0.5), "test_loss": self.careless()},
            }

        def careless(self) -> torch.Tensor:
            found = self.validate()  # and leaves the model in eval mode
            self.net.calls += 100
            with torch.no_grad():
                self.net.norm.running_mean += 1
            self.scheduler.step()
            self.best[0] = 0.0
            next(iter(self.loader))  # draws, and reads the loader that the loop is reading
            torch.rand(7)
            return found

        def own(self) -> Any:
            return self.net.calls, self.best

    barrier, loop = Barrier(3, 8), Careless()
    with running(loop, tmp_path, barrier) as run:
        for n in (3, 8):
            barrier.wait_for(n)
            cmds = ("validate_now", "test_now", "save_ckpt")
            asked = [run.dashboard.send(cmd) for cmd in cmds]
            for each in asked:  # one that comes while another is carried out is refused
                run.dashboard.expect("accepted", request_id=each)
            barrier.let_go(n)
            validated, tested, saved = (run.dashboard.reply_to(each)["data"] for each in asked)
            assert validated["metrics"].keys() == {"val_loss"}
            assert tested["metrics"]["test_acc"] == 0.5
            assert tested["avg_loss"] == tested["metrics"]["test_loss"]
        run.wait()
    bare = Careless().bare()
    assert loop.told == bare.told
    assert loop.digest() == bare.digest()
    again = Careless(seed=6).run(save_dir=tmp_path, resume=saved["path"])
    assert again.told == bare.told[9:]  # 8 batches, and the end of an epoch
    assert again.digest() == bare.digest()


def test_what_the_loop_was_not_given_is_refused_in_a_sentence(tmp_path: Path) -> None:
    loop = Loop()
    with running(loop, tmp_path, pause_at_start=True) as run:
        run.dashboard.expect("paused")
        said = {
            cmd: run.dashboard.request(cmd, payload)["detail"]
            for cmd, payload in (
                ("validate_now", {}),
                ("test_now", {}),
                ("extend", {"max_steps": 100}),
            )
        }
        run.dashboard.request("resume")
        run.wait()
    assert said == {
        "validate_now": "validate was asked, but the loop was attached without validate=.",
        "test_now": "test was asked, but the loop was attached without test=.",
        "extend": "extend was asked with max_steps; the loop has only a limit of epochs.",
    }


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("words", "validate= returned str; allowed: a number, a tensor with one, or a dict of "),
        ({"acc": torch.ones(2)}, "validate= for 'acc' returned Tensor; allowed: "),
    ],
)
def test_what_an_evaluation_returns_is_looked_at(found: Any, said: str, tmp_path: Path) -> None:
    loop = Loop()
    with running(loop, tmp_path, pause_at_start=True, validate=lambda: found) as run:
        run.dashboard.expect("paused")
        assert run.dashboard.request("validate_now")["detail"].startswith(said)
        limited = run.dashboard.request("validate_now", {"limit_batches": 1})
        run.dashboard.request("resume")
        run.wait()
    assert limited["detail"] == (
        "limit_batches was asked, but validate= takes no argument limit_batches."
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ByRange", "it stands in epoch 1 of a range of its own, not in epoch 0"),
        ("Slicing", "it reads its batches itself, which cannot be put back"),
    ],
)
def test_a_rollback_that_the_loop_cannot_follow_is_refused(
    kind: str, said: str, tmp_path: Path
) -> None:
    barrier = Barrier(2, 8)
    with made(kind) as loop, running(loop, tmp_path, barrier) as run:
        barrier.wait_for(2)
        asked = run.dashboard.send("save_ckpt")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(2)
        run.dashboard.reply_to(asked)
        barrier.wait_for(8)
        asked = run.dashboard.send("rollback", {"step": 2})
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(8)
        reply = run.dashboard.reply_to(asked)
        run.wait()
        assert reply["detail"] == (
            f"Another state was asked for the loop, but {said}; allowed: resume= when it begins."
        )
        digest = loop.digest()
    with made(kind) as bare:
        assert digest == bare.bare().digest()


def test_a_rollback_to_another_epoch_says_what_the_loops_variable_is(tmp_path: Path) -> None:
    barrier, loop = Barrier(2, 8), Loop()
    with running(loop, tmp_path, barrier) as run:
        barrier.wait_for(2)
        asked = run.dashboard.send("save_ckpt")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(2)
        run.dashboard.reply_to(asked)
        barrier.wait_for(8)
        asked = run.dashboard.send("rollback", {"step": 2})
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(8)
        assert run.dashboard.reply_to(asked)["ok"]
        run.wait()
        texts = [e["text"] for e in run.dashboard.events() if e["type"] == "log"]
    assert "the loop goes on in epoch 0, its own variable has 1 until that ends" in texts


def test_what_the_loop_raises_comes_through_and_the_run_has_failed(tmp_path: Path) -> None:
    loop = Loop()

    def fail(n: int) -> None:
        if n == 4:
            msg = "on purpose"
            raise ValueError(msg)

    loop.at = fail
    with running(loop, tmp_path) as run:
        with pytest.raises(ValueError, match="on purpose"):
            run.wait()
        finished = run.dashboard.expect("trainingFinished")
    assert (finished["status"], finished["step"]) == ("failed", 4)
    assert finished["error"] == "ValueError: on purpose"
    assert type(loop.loader) is not DataLoader  # the tap stays, as on Lightning
    assert not hasattr(type(loop.loader), "otf_batches")


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_a_loop_that_is_interrupted_says_so(leaving: type[BaseException], tmp_path: Path) -> None:
    loop = Loop()

    def leave(n: int) -> None:
        if n == 4:
            raise leaving

    loop.at = leave
    with running(loop, tmp_path) as run:
        with pytest.raises(leaving):
            run.wait()
        assert run.dashboard.expect("trainingFinished")["status"] == "stopped"


def test_two_loops_in_one_process_do_not_meet(tmp_path: Path) -> None:
    bare = Loop().bare()
    one = Loop()
    two = Loop(seed=8)
    with (
        one.attached(save_dir=tmp_path) as session,
        two.attached(save_dir=tmp_path) as other,
    ):
        assert session.run_id != other.run_id
        two.optimizer.zero_grad()
        two.loss(next(iter(two.loader))).backward()
        two.optimizer.step()
        assert other.tick() is False
        assert (session.step, other.step) == (0, 1)
        torch.manual_seed(0)
        one.train(session)
        assert (session.step, other.step) == (12, 1)
    again = Loop()
    torch.manual_seed(0)
    assert one.told == again.bare().told
    assert bare.told != []


def test_one_loader_is_not_read_by_two_sessions(tmp_path: Path) -> None:
    loop = Loop()
    with (
        loop.attached(save_dir=tmp_path) as session,
        pytest.raises(ValueError, match="two sessions at a time; allowed: one"),
        loop.attached(save_dir=tmp_path),
    ):
        pytest.fail("it was entered")
    assert session.run_id == "run"


def arguments(**other: Any) -> dict[str, Any]:
    net = nn.Linear(4, 1)
    usual = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1), "dashboard": "off"}
    return {**usual, **other}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "net"}, "model was asked to be str; allowed: a Module, or a dict of them"),
        ({"model": {}}, "model was asked to be dict; allowed: a Module, or a dict of them"),
        ({"model": {"a": 1}}, "model['a'] was asked to be int; allowed: a Module"),
        (
            {"model": {"a.b": nn.Linear(1, 1)}},
            "model was asked with the name 'a.b'; allowed: text without a dot",
        ),
        ({"optimizer": None}, "optimizer was asked to be NoneType; allowed: an Optimizer of torch"),
        ({"optimizer": [1]}, "optimizer[0] was asked to be int; allowed: an Optimizer of torch"),
        (
            {"scheduler": 3},
            "scheduler was asked to be int; allowed: a scheduler: an object with state_dict and "
            "load_state_dict, a list of them, or a dict of them by name",
        ),
        (
            {"train_loader": 3},
            "train_loader was asked to be int; allowed: an iterable of batches",
        ),
        (
            {"train_loader": iter([1])},
            "train_loader was asked to be list_iterator; allowed: one that can be read again for "
            "every epoch",
        ),
        ({"val_loader": 3}, "val_loader was asked to be int; allowed: an iterable"),
        (
            {"validate": 3},
            "validate was asked to be int; allowed: a function that returns a number or a dict of "
            "them",
        ),
        (
            {"scaler": 3},
            "scaler was asked to be int; allowed: an object with state_dict and load_state_dict",
        ),
        (
            {"max_epochs": 1.5},
            "max_epochs was asked to be float; allowed: a whole number of epochs, 0 or more",
        ),
        ({"state": [1]}, "state was asked to be list; allowed: a dict of objects by name"),
        (
            {"state": {"n": 1}},
            "state['n'] was asked to be int; allowed: a Module, an object with state_dict and "
            "load_state_dict, an object with attributes, or a pair (get, put)",
        ),
        (
            {"state": {"model": nn.Linear(1, 1)}},
            "state was asked with 'model', which is a model; allowed: another name",
        ),
        (
            {"telemetry": "some"},
            "telemetry was asked to be 'some'; allowed: full, basic, off",
        ),
    ],
)
def test_an_argument_that_is_not_allowed_is_refused_by_name(
    other: dict[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        otf_core.attach(**arguments(**other))


def test_what_is_logged_must_be_numbers(tmp_path: Path) -> None:
    with otf_core.attach(**arguments(save_dir=tmp_path)) as session:
        with pytest.raises(
            TypeError, match=re.escape("tick was given acc='x'; allowed: a number, or a tensor")
        ):
            session.tick(acc="x")
        with pytest.raises(TypeError, match="tick was given acc="):
            session.tick(acc=torch.ones(2))
        session.tick(loss=0.5, step=True, acc=torch.tensor(1))
        assert session.step == 1


def test_calls_outside_of_the_with_are_refused(tmp_path: Path) -> None:
    session = otf_core.attach(**arguments(save_dir=tmp_path))
    with pytest.raises(RuntimeError, match=r"tick was asked before it; allowed: inside of `with"):
        session.tick()
    with session:
        with pytest.raises(TypeError, match=r"epochs was asked without a number"):
            session.epochs()
        with pytest.raises(TypeError, match=r"batches was asked without a loader"):
            session.batches()
    with pytest.raises(RuntimeError, match="tick was asked after it"):
        session.tick()
    with pytest.raises(RuntimeError, match="entered twice"), session:
        pass


def test_a_step_can_be_said_where_no_optimizer_of_the_session_steps(tmp_path: Path) -> None:
    with otf_core.attach(**arguments(save_dir=tmp_path)) as session:
        session.tick()
        assert session.step == 0
        session.tick(step=True)
        assert session.step == 1
        assert session.batch_idx == 2


def test_a_loop_that_went_on_training_before_its_first_batch_is_told_so(tmp_path: Path) -> None:
    first = Loop()
    paths: list[str] = []
    with first.attached(save_dir=tmp_path) as session:

        def keep(n: int) -> None:
            if n == 3:
                saved = session._session.save("manual", pinned=True)
                assert saved.wait(30)
                paths.append(saved.path)

        first.at = keep
        first.train(session)
    again = Loop(seed=5)
    with running(again, tmp_path, Barrier(), resume=paths[0]) as run:
        run.wait()
    early = Loop(seed=5)

    class Early(Loop):
        def train(self, session: Any) -> None:
            self.loss(rows()[:4]).backward()
            self.optimizer.step()
            super().train(session)

    early = Early(seed=5)
    with running(early, tmp_path / "early", resume=paths[0]) as run:
        run.wait()
        texts = [e["text"] for e in run.dashboard.events() if e["type"] == "log"]
    assert "the loop has trained before its first batch: it does not go on exactly" in texts
    assert again.digest() == first.digest() != early.digest()


def test_an_unfinished_epoch_of_a_range_is_not_counted(tmp_path: Path) -> None:
    with made("ByRange") as loop:
        with loop.attached(save_dir=tmp_path) as session:
            loop.at = lambda n: None
            for batch in loop.loader:
                loop.batch(session, batch)
                if loop.n == 2:
                    break
        assert session.epoch == 0
    with made("ByRange") as loop, loop.attached(save_dir=tmp_path, resume="auto") as session:
        assert (session.epoch, session.batch_idx, session.step) == (0, 2, 2)


def test_ctrl_c_lets_the_batch_finish_and_the_run_goes_on_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = Loop().bare()
    loop = Loop()
    loss = loop.loss

    def interrupted(batch: Any) -> torch.Tensor:
        if loop.n == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(batch)

    loop.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run(save_dir=tmp_path)
    assert loop.n == 5
    assert "Ctrl-C: saved step 5; OTF_RESUME=" in capsys.readouterr().err
    again = Loop(seed=9).run(save_dir=tmp_path, resume="auto")
    assert again.told == bare.told[5:]
    assert again.digest() == bare.digest()


def test_what_is_set_before_the_first_batch_of_a_resumed_loop_holds(tmp_path: Path) -> None:
    first = Loop()
    barrier = Barrier(3)
    with running(first, tmp_path, barrier) as run:
        barrier.wait_for(3)
        asked = run.dashboard.send("save_ckpt")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(3)
        path = run.dashboard.reply_to(asked)["data"]["path"]
        run.wait()
    again, rates = Loop(seed=4), []
    again.at = lambda _: rates.append(again.optimizer.param_groups[0]["lr"])
    with running(again, tmp_path, resume=path, pause_at_start=True) as run:
        run.dashboard.expect("paused")
        change = {"path": "lr", "value": 0.0125, "mode": "override"}
        assert run.dashboard.request("set_param", change)["ok"]
        run.dashboard.request("resume")
        run.wait()
    assert rates == [0.0125] * 9


def test_a_run_that_is_held_at_its_end_is_rolled_back_and_trains_on(tmp_path: Path) -> None:
    barrier, loop = Barrier(4), Loop()
    with running(loop, tmp_path, barrier, after_fit="hold") as run:
        barrier.wait_for(4)
        asked = run.dashboard.send("save_ckpt")
        run.dashboard.expect("accepted", request_id=asked)
        barrier.let_go(4)
        run.dashboard.reply_to(asked)
        run.dashboard.expect("state", state="paused", reason="after_fit")
        assert run.dashboard.request("rollback", {"step": 4})["data"]["from_step"] == 12
        assert run.dashboard.request("status")["data"]["epoch"] == 0
        run.dashboard.request("resume")
        run.dashboard.expect("state", state="paused", reason="after_fit", run_gen=1)
        run.dashboard.request("resume")
        run.wait()
    bare = Loop().bare()
    assert loop.told == [*bare.told, *bare.told[4:]]
    assert loop.digest() == bare.digest()


def test_a_schedule_of_fixed_length_is_not_extended(tmp_path: Path) -> None:
    loop = Loop()
    loop.scheduler = torch.optim.lr_scheduler.OneCycleLR(loop.optimizer, 0.1, total_steps=12)
    with running(loop, tmp_path, pause_at_start=True) as run:
        run.dashboard.expect("paused")
        said = run.dashboard.request("extend", {"max_epochs": 5})["detail"]
        run.dashboard.request("resume")
        run.wait()
    assert said == "extend was asked, but OneCycleLR has a fixed length; it would raise."


def test_a_compiled_model_goes_on(tmp_path: Path) -> None:
    class Compiled(Loop):
        def build(self) -> None:
            plain = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
            self.optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)
            self.net = torch.compile(plain, backend="eager")  # type: ignore[assignment]

        def own(self) -> Any:
            return None

    bare, paths = Compiled().bare(), []
    loop = Compiled()
    with loop.attached(save_dir=tmp_path) as session:

        def keep(n: int) -> None:
            if n == 5:
                saved = session._session.save("manual", pinned=True)
                assert saved.wait(30)
                paths.append(saved.path)

        loop.at = keep
        loop.train(session)
    assert loop.digest() == bare.digest()
    again = Compiled(seed=3).run(save_dir=tmp_path, resume=paths[0])
    assert again.digest() == bare.digest()


def test_two_optimizers_on_one_batch_are_one_step(tmp_path: Path) -> None:
    with made("TwoModels") as loop, loop.attached(save_dir=tmp_path) as session:
        loop.train(session)
        assert (session.position().step, session.position().global_step) == (12, 24)
