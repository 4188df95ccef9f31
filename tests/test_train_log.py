"""The record, the line for people, and the warnings."""

import io
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from small import picture_folder

from diptych.errors import StorageError
from diptych.train.log import Live, RunLog, Watch, live_text, read_log

ROW = {"loss": 2.0, "wait_share": 0.0, "pairs": 5000, "cut": 0}


def write_log(path, steps):
    log = RunLog(path)
    for step in steps:
        log.add({"kind": "step", "step": step, "loss": 1 / step})
    return log


def test_what_is_added_is_read_back(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [1, 2, 3])
    assert [row["step"] for row in read_log(log.path)] == [1, 2, 3]
    assert read_log(log.path)[2]["loss"] == 1 / 3  # exactly


def test_cutting_keeps_the_lines_up_to_the_step_byte_for_byte(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [1, 2, 3, 3, 4])
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.cut(3)
    assert log.path.read_bytes() == b"".join(lines[:4])


def test_cutting_removes_a_half_written_last_line(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [1, 2, 3])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"kind": "step", "st')
    assert [row["step"] for row in read_log(log.path)] == [1, 2, 3]
    log.cut(9)
    assert log.path.read_bytes() == whole


def test_a_line_that_lacks_only_its_end_of_line_is_kept_whole(tmp_path):
    log = write_log(tmp_path / "log.jsonl", [1, 2])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-1])
    log.cut(2)
    log.add({"step": 3})
    assert log.path.read_bytes() == whole + b'{"step": 3}\n'


def test_cutting_a_log_that_is_not_there_does_nothing(tmp_path):
    RunLog(tmp_path / "log.jsonl").cut(5)
    assert not (tmp_path / "log.jsonl").exists()


def watched(chance=9.0):
    return Watch(chance, context=32)


def test_a_loss_at_chance_level_is_said_once_with_advice():
    watch = watched(chance=2.0)
    said = [watch.look(ROW, progress=0.5) for _ in range(30)]
    assert [len(lines) for lines in said] == [0] * 4 + [1] + [0] * 25
    assert "the loss sits at 2.000" in said[4][0]
    assert "Check that captions belong to their pictures" in said[4][0]
    assert "--set optimizer.lr=3e-4" in said[4][0]


def test_a_loss_at_chance_level_is_no_news_while_the_run_begins():
    watch = watched(chance=2.0)
    assert not [line for _ in range(30) for line in watch.look(ROW, progress=0.1)]


def test_a_loss_that_leaves_chance_level_starts_the_count_anew():
    watch = watched(chance=2.0)
    for _ in range(4):
        assert not watch.look(ROW, progress=0.5)
    assert not watch.look(ROW | {"loss": 1.0}, progress=0.5)
    assert not watch.look(ROW, progress=0.5)


def test_waiting_for_data_is_said_once_with_advice():
    watch = watched()
    said = [watch.look(ROW | {"wait_share": 0.8}, progress=0.01) for _ in range(30)]
    assert [len(lines) for lines in said] == [0] * 4 + [1] + [0] * 25
    assert "80% of the time goes into waiting for data" in said[4][0]
    assert "--set data.workers=4" in said[4][0]


def test_half_the_time_spent_waiting_is_not_yet_worth_a_word():
    watch = watched()
    assert not [line for _ in range(9) for line in watch.look(ROW | {"wait_share": 0.5}, 0.5)]


def test_captions_that_lose_their_end_are_said_once_with_share_and_advice():
    watch = watched()
    rows = [ROW | {"pairs": 1000 * number, "cut": 30 * number} for number in range(1, 20)]
    said = [watch.look(row, progress=0.01) for row in rows]
    assert [len(lines) for lines in said] == [1] + [0] * 18
    assert said[0][0] == (
        "30 of 1,000 captions (3.0%) were longer than the 32 tokens the model reads and lost their "
        "end. To keep more of them, start again in another --out with --set model.text.context=64."
    )


@pytest.mark.parametrize(("pairs", "cut"), [(5000, 50), (64, 64), (0, 0)])
def test_few_captions_that_lose_their_end_are_not_yet_worth_a_word(pairs, cut):
    assert not watched().look(ROW | {"pairs": pairs, "cut": cut}, progress=0.5)


def test_off_a_terminal_a_line_is_printed_now_and_then(tmp_path):
    with (tmp_path / "errors").open("w+") as stream:
        live = Live(stream, every_s=1000.0)
        for step in range(5):
            live.show(f"step {step}")
        live.say("a warning")
        live.show("step 5", last=True)
    assert (tmp_path / "errors").read_text() == "step 0\na warning\nstep 5\n"


def test_on_a_terminal_the_line_is_rewritten_in_place():
    clear = "\r\x1b[2K"
    expected = f"{clear}step 1{clear}a warning\n{clear}step 2\n".replace("\n", "\r\n").encode()
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        live = Live(terminal)
        live.show("step 1")
        live.say("a warning")
        live.show("step 2", last=True)
        said = b""  # a terminal hands over what was written piece by piece
        while len(said) < len(expected) and select.select([ours], [], [], 10.0)[0]:
            said += os.read(ours, 1000)
    os.close(ours)
    assert said == expected


class Deaf(io.StringIO):
    """A stream that takes `room` writes and then fails."""

    def __init__(self, room):
        super().__init__()
        self.room, self.tries = room, 0

    def write(self, text):
        self.tries += 1
        if self.tries > self.room:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_stream_that_fails_is_left_alone_from_then_on():
    stream = Deaf(2)
    live = Live(stream, every_s=0.0)
    for number in range(3):
        live.say(f"line {number}")
        live.show(f"step {number}", last=True)
    assert stream.getvalue() == "line 0\nstep 0\n"
    assert stream.tries == 3


def test_a_full_disk_under_the_live_line_is_no_error():
    with Path("/dev/full").open("w", buffering=1) as stream:
        Live(stream).say("nobody reads this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # closing flushes again


DEAF_RUN = """
import sys
from small import small_run
from diptych.train.loop import train
sys.stdin.readline()
run = small_run("steps=3", "data.val=null", f"data.source={sys.argv[1]}")
print(train(run, sys.argv[2]).steps)
"""


def test_a_closed_pipe_does_not_stop_a_run(tmp_path):
    source = picture_folder(tmp_path / "pictures", 12)
    command = [sys.executable, "-c", DEAF_RUN, str(source), str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, text=True, env=os.environ | path, **pipes) as process:
        process.stderr.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stdout.read() == "3\n"
    assert len(read_log(tmp_path / "run/log.jsonl")) == 3


def test_the_live_line_tells_loss_speed_time_left_and_waiting():
    row = {"step": 1200, "loss": 1.23456, "pairs_per_s": 4321.7, "wait_share": 0.256}
    assert live_text(row, 0.5, 65.0) == (
        "step 1,200 (50%) · loss 1.235 · 4,322 pairs/s · 1:05 left · 26% waiting for data"
    )
    assert "2:00:05 left" in live_text(row, 0.5, 7205.0)
    assert "0:00 left" in live_text(row, 1.0, -0.2)


def test_numbers_in_the_log_survive_as_they_were(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    loss = 0.1 + 0.2
    log.add({"step": 1, "loss": loss})
    assert json.loads(log.path.read_text())["loss"] == loss


def test_a_full_disk_is_a_storage_error():
    with pytest.raises(
        StorageError, match=r"^/dev/full cannot be written: No space left .* Free so"
    ):
        RunLog(Path("/dev/full")).add({"step": 1})
