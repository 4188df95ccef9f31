"""Several real processes, each with its own share of a batch, compute what one would compute."""

import json
import os
import queue
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from small import SHRINK, small_run
from small_change import change_run, pair_batch, woken_state
from torch.nn.parallel import DistributedDataParallel

from diptych.batch import ImagePairBatch, ImageTextBatch
from diptych.cli import run
from diptych.comm import Comm, join_processes
from diptych.errors import RequestError
from diptych.models.change import ChangeModelConfig
from diptych.models.dual_encoder import DualEncoder
from diptych.models.kinds import build_model
from diptych.train.change_step import ChangeObjective
from diptych.train.log import Live, read_log
from diptych.train.loop import train
from diptych.train.step import Objective

ROWS = 4
"""Pairs on each rank."""

CHUNKS = (None, 3)
"""Most pairs that the towers take at a time; 3 makes two pieces."""


def spawn(work, ranks, folder):
    """Call `work(comm, folder)` in `ranks` processes; what each returned, by rank."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_in_process, args=(work, rank, ranks, answers, folder))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(answer_of(processes, answers) for _ in processes)
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    return [found[rank] for rank in range(ranks)]


def answer_of(processes, answers):
    """The next answer; a process that failed is told as soon as none comes, silence in the end."""
    for _ in range(240):
        with suppress(queue.Empty):
            return answers.get(timeout=1)
        ends = [process.exitcode for process in processes]
        assert not any(ends), f"processes ended with {ends}"
    raise AssertionError(f"no answer, and processes ended with {ends}")


def _in_process(work, rank, ranks, answers, folder):
    torch.set_num_threads(1)
    address = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    answer = None
    try:
        answer = work(Comm(rank, ranks, rank), folder)
    finally:
        answers.put((rank, answer))
        dist.destroy_process_group()


def whole_batch(ranks, settings):
    """Pairs of all ranks, all different but for two that share a caption across ranks."""
    generator = torch.Generator().manual_seed(3)
    count, side = ranks * ROWS, settings.model.image.image_size
    text = torch.randint(3, 400, (count, settings.model.text.context), generator=generator)
    text[:, -1] = settings.model.text.end_token
    groups = torch.arange(count)
    text[-1], groups[-1] = text[0], groups[0]
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=generator)
    return ImageTextBatch(image=pixels.byte(), text=text, groups=groups, position=0)


def share_of(batch, rank):
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    return ImageTextBatch(
        image=batch.image[mine], text=batch.text[mine], groups=batch.groups[mine], position=0
    )


def objective(settings, comm, chunk=None):
    transform, device = settings.data.transform, torch.device("cpu")
    return Objective(transform, comm, device, bf16=False, tile=None, chunk=chunk)


def start_model(settings):
    torch.manual_seed(5)
    return DualEncoder(settings.model)


def change_parts(family, ranks):
    """A model of pictures in a row, what makes its loss, and the batch of all ranks: texts of
    several lengths, and on the first rank no row of which anyone knows whether it changed."""
    name = {"change model": "change-caption-tiny", "located": "change-tiny"}[family]
    settings = change_run(recipe=name)
    torch.manual_seed(5)
    model = woken_state(build_model(settings.model))
    batch = pair_batch(settings, ranks * ROWS)
    batch.changed[:ROWS] = float("nan")

    def objective_of(comm, chunk=None):
        if isinstance(settings.model, ChangeModelConfig):
            rest = (settings.data.transform, comm, torch.device("cpu"))
            return ChangeObjective(settings.model, *rest, bf16=False, chunk=chunk)
        return objective(settings, comm, chunk)

    return model, objective_of, batch


def change_share(batch, rank):
    """A rank's part of a batch, its texts without columns that are padding in all of them."""
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    rows = ("image", "text", "changed", "mask", "groups")
    parts = vars(batch) | {name: getattr(batch, name)[mine] for name in rows}
    used = parts["text"].any(dim=0)
    return ImagePairBatch(**parts | {"text": parts["text"][:, used]})


def change_gradients(comm, family, chunk):
    """What one rank of a real run computes of pictures in a row."""
    model, objective_of, batch = change_parts(family, comm.size)
    averaged = DistributedDataParallel(model)
    loss = objective_of(comm, chunk).backward(averaged, change_share(batch, comm.rank))
    return loss.item(), gradients_of(model)


def gradients_of(model):
    return {name: weight.grad.clone().numpy() for name, weight in model.named_parameters()}


def loss_and_gradients(comm, family, chunk):
    """What one rank of a real run computes."""
    settings = small_run(family=family)
    model = start_model(settings)
    batch = share_of(whole_batch(comm.size, settings), comm.rank)
    averaged = DistributedDataParallel(model)
    loss = objective(settings, comm, chunk).backward(averaged, batch)
    return loss.item(), gradients_of(model)


def talk(comm):
    """Every call once, with what this rank alone knows."""
    rows = torch.full((2, 3), float(comm.rank + 1), requires_grad=True)
    gathered = comm.gather(rows)
    weight = torch.arange(gathered.numel(), dtype=torch.float32).view_as(gathered)
    (gathered * weight).sum().backward()
    numbers = comm.gather_numbers(torch.tensor([comm.rank, 10 * comm.rank]))
    agreed = comm.agree({"from": comm.rank})
    collected = comm.collect(f"rank {comm.rank}")
    comm.wait()
    return (
        *(gathered.detach().numpy(), rows.grad.numpy(), numbers.tolist(), agreed, collected),
        comm.first,
    )


def refused(comm, folder):
    """What a run says whose batch the processes cannot divide."""
    try:
        with (folder / f"said-{comm.rank}").open("w") as stream:
            train(small_run("batch=13"), folder / "run", comm=comm, live=Live(stream))
    except RequestError as error:
        return str(error)
    return ""


def everything(comm, folder):
    """All that is asked of real processes, in one start of them."""
    return {
        "talk": talk(comm),
        "refused": refused(comm, folder),
        **{
            (family, chunk): loss_and_gradients(comm, family, chunk)
            for family in ("clip", "siglip")
            for chunk in CHUNKS
        },
        **{
            (family, chunk): change_gradients(comm, family, chunk)
            for family in ("change model", "located")
            for chunk in CHUNKS
        },
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of 2 and each of 3 processes found."""
    return {
        ranks: spawn(everything, ranks, tmp_path_factory.mktemp(f"ranks{ranks}"))
        for ranks in (2, 3)
    }


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_every_gradient_equal_those_of_one_process(answers, ranks, family, chunk):
    settings = small_run(family=family)
    model = start_model(settings)
    expected = objective(settings, Comm())(model, whole_batch(ranks, settings))
    assert_same_gradients(model, expected, [answer[family, chunk] for answer in answers[ranks]])


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("family", ["change model", "located"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_so_do_those_of_pictures_in_a_row(answers, ranks, family, chunk):
    model, objective_of, batch = change_parts(family, ranks)
    expected = objective_of(Comm())(model, batch)
    assert_same_gradients(model, expected, [answer[family, chunk] for answer in answers[ranks]])


def assert_same_gradients(model, expected, found):
    """What each rank found is the loss of one process, and its gradients."""
    expected.backward()
    by_one = gradients_of(model)
    assert all(abs(gradient).max() > 0 for gradient in by_one.values())
    for loss, gradients in found:
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        assert gradients.keys() == by_one.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                torch.from_numpy(gradient),
                torch.from_numpy(by_one[name]),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("ranks", [2, 3])
def test_gathering_agreeing_and_collecting_between_processes(answers, ranks):
    each = range(ranks)
    for rank, answer in enumerate(answers[ranks]):
        rows, gradient, numbers, agreed, collected, first = answer["talk"]
        assert rows.tolist() == [[one + 1.0] * 3 for one in each for _ in range(2)]
        ours = torch.arange(6.0 * ranks).view(-1, 3)[2 * rank : 2 * rank + 2]
        assert gradient.tolist() == (ranks * ours).tolist()  # averaged over ranks afterwards
        assert numbers == [number for one in each for number in (one, 10 * one)]
        assert agreed == {"from": 0}
        assert collected == [f"rank {one}" for one in each]
        assert first == (rank == 0)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_that_do_not_divide_the_batch_are_refused(answers, ranks):
    words = f"batch 13 cannot be divided among {ranks} processes. Use --batch 12."
    assert [answer["refused"] for answer in answers[ranks]] == [words] * ranks


def test_one_process_is_the_plain_case():
    comm, rows = Comm(), torch.ones(2, 3)
    assert comm.gather(rows) is rows
    assert comm.gather_numbers(torch.tensor([4])).tolist() == [4]
    assert (comm.agree(7), comm.collect(7), comm.first) == (7, [7], True)
    comm.wait()


def test_half_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RequestError, match=r"RANK is not set\. Start the processes with"):
        join_processes("cpu")


def train_command(out):
    command = ["train", "clip-tiny", "--data", "scenes:shapes:val", "--val", "scenes:shapes:test"]
    command += ["--batch", "12", "--steps", "5", "--json", "--out", str(out)]
    quick = ("log_every=1", "validate_every=3", "data.val_pairs=24", "precision=fp32")
    for setting in (*SHRINK, *quick):
        command += ["--set", setting]
    return command


def torchrun(ranks, *command):
    where = ("--nproc-per-node", str(ranks), "--standalone")  # it finds a free port by itself
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *where, "-m", "diptych", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_train_as_one_does_and_leave_one_log(tmp_path):
    two = torchrun(2, *train_command(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["steps"] == 5  # one answer, of the first process
    assert run(train_command(tmp_path / "one")) == 0
    rows = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]]
    for alone, shared in zip(*rows, strict=True):
        for name in ("loss", "lr", "scale", "pairs", "text_to_image_recall@1"):
            assert shared.get(name) == pytest.approx(alone.get(name), abs=1e-4), name
