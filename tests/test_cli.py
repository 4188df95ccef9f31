"""The command line: what it prints, how it ends, and the whole line from pictures to an answer."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import typer
from small import SHRINK, caption_of, picture_folder

from diptych.cli import UsageError, app, run
from diptych.train.log import RunLog

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "embed",
    "index",
    "search",
    "classify",
    "compare",
    "convert",
    "recipes",
    "doctor",
)


def command_line(*arguments, **environment):
    """The real thing, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "diptych", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def train_arguments(pictures, out, *options):
    arguments = ["train", "clip-tiny", "--data", pictures, "--out", out, "--batch", 8]
    for setting in (*SHRINK, "log_every=1", "precision=fp32"):
        arguments += ["--set", setting]
    return [str(argument) for argument in (*arguments, *options)]


def answer_of(capsys, *arguments):
    """The one JSON object that a command prints, and that it ended well."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.count("\n") == 1
    answer = json.loads(printed.out)
    assert isinstance(answer, dict)
    return answer


def refusal_of(capsys, *arguments):
    """Exit code and the line on standard error of a command that is refused."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("error: ")
    return code, line.removeprefix("error: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures with captions, a run trained on them, and their vectors."""
    folder = tmp_path_factory.mktemp("line")
    pictures = picture_folder(folder / "pictures", 24)
    options = ("--val", pictures, "--steps", 40, "--set", "optimizer.lr=5e-3")
    assert run(train_arguments(pictures, folder / "run", *options)) == 0
    arguments = ["embed", folder / "run", "--data", pictures, "--out", folder / "vectors"]
    assert run([str(argument) for argument in arguments]) == 0
    return folder


def test_the_commands_are_those_of_the_design():
    assert tuple(command.callback.__name__ for command in app.registered_commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_the_common_options(capsys, command):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: diptych {command}" in text
    for option in ("--json", "--seed", "--device", "--help"):
        assert option in text


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_command(capsys, arguments):
    assert run(arguments) == 0
    printed = capsys.readouterr()
    for command in COMMANDS:
        assert f"\n  {command} " in printed.out + printed.err


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom diptych.cli import run\nrun(['--help'])\nrun(['train', '--help'])\n"
        "heavy = ('torch', 'numpy', 'pyarrow', 'PIL', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.strip() == "[]"


def test_training_answers_with_one_object(capsys, tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 12)
    answer = answer_of(capsys, *train_arguments(pictures, tmp_path / "run", "--steps", 2))
    assert (answer["steps"], answer["pairs"], answer["finished"]) == (2, 16, True)
    assert answer["checkpoint"].endswith("step-00000002")
    assert answer["validation_loss"] is None


def test_a_run_is_taken_up_with_resume_and_refused_without(capsys, tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 12)
    arguments = train_arguments(pictures, tmp_path / "run", "--steps", 2)
    assert run(arguments) == 0
    code, line = refusal_of(capsys, *arguments)
    assert code == 2
    assert line.endswith(
        "already holds a run. Add --resume to go on with it, or give another --out."
    )
    longer = train_arguments(pictures, tmp_path / "run", "--steps", 4, "--resume")
    assert answer_of(capsys, *longer)["steps"] == 4


def test_the_options_of_train_are_settings_of_the_run(capsys, tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 12)
    options = ("--val", pictures, "--epochs", 0.7, "--seed", 5, "--workers", 0)
    options += ("--batch", 4, "--chunk", 3, "--track", "tensorboard")
    answer_of(capsys, *train_arguments(pictures, tmp_path / "run", *options))
    settings = json.loads((tmp_path / "run/run.json").read_text())
    assert (settings["seed"], settings["batch"], settings["epochs"]) == (5, 4, 0.7)
    assert settings["steps"] is settings["minutes"] is None
    assert settings["data"]["source"] == settings["data"]["val"] == str(pictures)
    assert settings["data"]["workers"] == 0
    assert (settings["chunk"], settings["trackers"]) == (3, ["tensorboard"])
    assert settings["model"]["image"]["width"] == 32


def test_evaluation_answers_with_numbers_fingerprints_and_seed(capsys, made):
    task = ("--task", "retrieval", "--data", made / "pictures", "--resamples", 100)
    answer = answer_of(capsys, "evaluate", made / "run", *task, "--seed", 3)
    assert answer["metrics"]["text_to_image"]["recall@1"]["value"] > 3 / 24  # chance is 1 / 24
    assert answer["seed"] == 3
    contract = json.loads((made / "run/checkpoints/last/contract.json").read_text())
    assert answer["model"]["fingerprint"] == contract["fingerprint"]


def test_each_evaluation_has_a_file_of_its_own_that_outlives_the_checkpoint(capsys, tmp_path, made):
    shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    results, models = tmp_path / "run/results", tmp_path / "run/checkpoints"
    task = ("--data", made / "pictures", "--resamples", 100)
    answers = [
        answer_of(capsys, "evaluate", model, *task, *options)
        for model in (tmp_path / "run", models / "last", (models / "last").resolve())
        for options in ((), ("--limit", 5), ("--seed", 3), ("--resamples", 200))
    ]
    prefix = f"retrieval-{answers[0]['data']['fingerprint']}-"
    files = sorted(results.iterdir())
    assert len(files) == 4
    assert all(file.name.startswith(prefix) for file in files)
    assert not list(models.rglob("retrieval*"))
    for file in files:
        assert json.loads(file.read_text())["metrics"] in [one["metrics"] for one in answers]


def test_a_fine_tuned_model_keeps_its_results_in_the_run(capsys, tmp_path, made):
    """`model/` is written anew when the run goes on."""
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    shutil.copytree((made / "run/checkpoints/last").resolve(), run_folder / "model")
    shutil.copy(made / "run/run.json", run_folder)
    answer = answer_of(
        capsys, "evaluate", run_folder, "--data", made / "pictures", "--resamples", 100
    )
    (written,) = (run_folder / "results").iterdir()
    assert json.loads(written.read_text()) == answer
    assert not (run_folder / "model/results").exists()


def test_a_model_outside_a_run_keeps_its_results_beside_it(capsys, tmp_path, made):
    model = shutil.copytree((made / "run/checkpoints/last").resolve(), tmp_path / "model")
    task = ("--data", made / "pictures", "--resamples", 100)
    answer = answer_of(capsys, "evaluate", model, *task)
    (written,) = (model / "results").iterdir()
    assert json.loads(written.read_text()) == answer
    assert answer_of(capsys, "evaluate", model, *task)["metrics"] == answer["metrics"]


def test_evaluation_writes_where_it_is_told(capsys, made, tmp_path):
    options = ("--data", made / "pictures", "--resamples", 100, "--limit", 7)
    answer = answer_of(capsys, "evaluate", made / "run", *options, "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == answer
    assert (answer["data"]["limit"], answer["metrics"]["pictures"]) == (7, 7)


def test_embedding_answers_with_counts_and_goes_on_where_it_was(capsys, made, tmp_path):
    arguments = ("embed", made / "run", "--data", made / "pictures", "--out", tmp_path / "v")
    first, second = answer_of(capsys, *arguments), answer_of(capsys, *arguments)
    assert (first["rows"], first["kept"], first["bad"]) == (24, 0, {})
    assert (second["rows"], second["kept"]) == (0, 24)


def test_embedding_again_tells_vectors_from_samples_without(capsys, made, tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 9, bad=(1, 5, 7))
    arguments = ("embed", made / "run", "--data", pictures, "--out", tmp_path / "v")
    answer_of(capsys, *arguments)
    assert run([str(argument) for argument in arguments]) == 0
    assert capsys.readouterr().out == (
        f"0 vectors written to {tmp_path / 'v'}; 6 were there already "
        "(3 pictures beside them could not be read then)\n"
    )


def test_a_search_for_a_picture_finds_it_first(capsys, made):
    for number in (0, 11, 23):
        path = made / "pictures" / f"{number:03}.png"
        answer = answer_of(capsys, "search", made / "vectors", "--image", path, "-k", 3)
        assert len(answer["hits"]) == 3
        assert answer["hits"][0]["path"] == str(path.resolve())
        assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_a_search_for_a_picture_that_does_not_exist_is_a_wrong_request(capsys, made):
    code, line = refusal_of(capsys, "search", made / "vectors", "--image", "nope.jpg")
    assert (code, line) == (2, "there is no picture file nope.jpg. Check the path.")


def test_a_search_for_a_caption_finds_its_picture_far_more_often_than_by_chance(capsys, made):
    found = 0
    for number in range(24):
        hits = answer_of(capsys, "search", made / "vectors", caption_of(number), "-k", 5)["hits"]
        assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)
        found += caption_of(number) in [caption for hit in hits for caption in hit["captions"]]
    assert found > 2 * 24 * 5 / 24


def test_a_search_prints_a_line_for_each_hit(capsys, made):
    capsys.readouterr()
    assert run(["search", str(made / "vectors"), "red thing", "-k", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert all(".png" in line and "thing number" in line for line in lines)


@pytest.mark.parametrize("words", [(), ("red", "--image", "x.png")])
def test_a_search_takes_words_or_a_picture(capsys, made, words):
    code, line = refusal_of(capsys, "search", made / "vectors", *words)
    assert code == 2
    assert "a search takes words or --image, and" in line


def test_vectors_of_another_model_are_not_searched(capsys, made, tmp_path):
    arguments = train_arguments(made / "pictures", tmp_path / "other", "--steps", 1)
    assert run(arguments) == 0
    code, line = refusal_of(
        capsys, "search", made / "vectors", "red", "--model", tmp_path / "other"
    )
    assert code == 2
    assert "Give that model with --model, or embed again into a new folder: " in line


def test_vectors_whose_model_is_gone_ask_for_it(capsys, made, tmp_path):
    model = shutil.copytree((made / "run/checkpoints/last").resolve(), tmp_path / "model")
    arguments = ("embed", model, "--data", made / "pictures", "--out", tmp_path / "vectors")
    answer_of(capsys, *arguments)
    model.rename(tmp_path / "moved")
    code, line = refusal_of(capsys, "search", tmp_path / "vectors", "red")
    assert code == 2
    assert line == (
        f"the model that made {tmp_path / 'vectors'} is no longer at {model.resolve()}: it was "
        "moved or removed. Give it with --model, or embed again into a new folder: "
        "diptych embed MODEL --data DIR --out NEW."
    )
    moved = ("--model", tmp_path / "moved", "-k", 2)
    assert len(answer_of(capsys, "search", tmp_path / "vectors", "red", *moved)["hits"]) == 2


@pytest.mark.parametrize("words", ["", "  "])
def test_a_search_for_no_words_is_refused(capsys, made, words):
    code, line = refusal_of(capsys, "search", made / "vectors", words)
    assert code == 2
    assert "a search takes words, and '" in line
    assert line.endswith(f'Write: diptych search {made / "vectors"} "a red bicycle".')


def test_the_recipes_are_listed(capsys):
    from diptych.recipes import RECIPES

    rows = answer_of(capsys, "recipes")["recipes"]
    assert [row["name"] for row in rows] == list(RECIPES)
    assert all(row["parameters"] > 0 and row["about"] for row in rows)


def test_the_doctor_says_what_the_machine_can_do(capsys):
    answer = answer_of(capsys, "doctor")
    assert answer["fp32_gflops"] > 0
    assert answer["jpeg_per_s"] > 0
    assert isinstance(answer["advice"], list)


TRAIN = ("train", "clip-tiny", "--out", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "clip-tinny", "--data", "x", "--out", "y"), "Did you mean 'clip-tiny'?"),
        (("trian",), "Did you mean 'train'"),
        ((*TRAIN, "--dta", "x"), "--data"),
        ((*TRAIN,), "Missing option '--data'"),
        ((*TRAIN, "--data", "x", "--steps", "many"), "'--steps': Input should be a valid integer"),
        ((*TRAIN, "--data", "x", "--set", "optimiser.lr=1"), "Did you mean 'optimizer'?"),
        ((*TRAIN, "--data", "x", "--set", "seed"), "Write it as name=value"),
        ((*TRAIN, "--data", "x", "--steps", "5", "--minutes", "1"), "Give exactly one of --steps"),
        (
            (*TRAIN, "--data", "x", "--epochs", "0"),
            "--epochs is 0, and a run has a length. Give more",
        ),
        ((*TRAIN, "--data", "x", "--minutes", "-1"), "Give more than 0, such as --minutes 5."),
        ((*TRAIN, "--data", "x", "--epochs", "nan"), "--epochs is nan, and a run has a length."),
        ((*TRAIN, "--data", "x", "--val-where", "1"), "--val is not. Give --val SOURCE too."),
        ((*TRAIN, "--data", "no/such/folder"), "there is nothing at no/such/folder. Check"),
        ((*TRAIN, "--data", "scenes:shaps"), "Did you mean 'shapes'?"),
        ((*TRAIN, "--data", "scenes:shapes", "--device", "gpu"), "Use auto, cpu, cuda or mps."),
        (("evaluate", "x", "--data", "y", "--task", "retreival"), "Did you mean 'retrieval'?"),
        (("search", "nowhere", "red"), "nowhere holds no library and no vectors"),
        (
            ("search", "nowhere", "a", "red", "square"),
            '(red square). Put the words in quotes, such as "a red square". See diptych search',
        ),
        (("evaluate", "--dta", "x"), "See diptych evaluate --help."),
        (("trian",), "See diptych --help."),
        (("evaluate", "runs/nope", "--data", "scenes:shapes:val"), "runs/nope: nothing is there."),
    ],
)
def test_a_wrong_request_ends_with_2_and_one_line_that_says_what_to_do(
    capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    code, line = refusal_of(capsys, *arguments)
    assert code == 2
    assert words in line
    assert not list(tmp_path.rglob("*"))


def test_the_parsers_error_is_the_class_that_run_catches():
    """It is found as the parent of typer's BadParameter; a change of typer must not go unseen."""
    assert UsageError.__name__ == "UsageError"
    assert issubclass(typer.BadParameter, UsageError)
    assert UsageError.exit_code == 2
    assert UsageError("what is so").format_message() == "what is so"
    with pytest.raises(UsageError):
        app(["trian"], standalone_mode=False)
    with pytest.raises(UsageError):
        app(["train", "x", "--dta"], standalone_mode=False)


def test_a_run_that_was_stopped_answers_and_ends_with_1(capsys, tmp_path, monkeypatch):
    pictures = picture_folder(tmp_path / "pictures", 12)
    arguments = train_arguments(pictures, tmp_path / "run", "--steps", 50, "--workers", 0)
    add = RunLog.add

    def stop_at_3(log, row):
        add(log, row)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "add", stop_at_3)
    assert run([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["finished"] is False
    assert 3 <= answer["steps"] < 50
    assert "error" not in printed.err
    monkeypatch.setattr(RunLog, "add", lambda log, row: (add(log, row), os.kill(os.getpid(), 15)))
    assert run([*arguments, "--resume"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("stopped after ")
    assert "; go on with --resume\n" in printed.out
    monkeypatch.setattr(RunLog, "add", add)
    assert run([*arguments, "--resume"]) == 0
    assert capsys.readouterr().out.startswith("trained 50 steps")


def test_a_validation_source_of_one_picture_is_refused_before_training(capsys, tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 12)
    one = picture_folder(tmp_path / "one", 1)
    code, line = refusal_of(
        capsys, *train_arguments(pictures, tmp_path / "run", "--steps", 2, "--val", one)
    )
    assert code == 2
    assert f"{one} has 1 picture that can be read" in line
    assert not (tmp_path / "run").exists()


def test_what_fails_ends_with_1(capsys, tmp_path):
    code, line = refusal_of(capsys, "evaluate", tmp_path, "--data", "scenes:shapes:val")
    assert code == 1
    assert line.endswith("Give the folder of a run or of one of its checkpoints.")


def test_with_json_the_error_is_an_object_too(capsys, tmp_path):
    assert run(["evaluate", str(tmp_path), "--data", "x", "--task", "no", "--json"]) == 2
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["exit_code"] == 2
    assert printed.err == f"error: {answer['error']}\n"


def test_what_nobody_thought_of_is_one_line_too(capsys, tmp_path, monkeypatch):
    def broken(name):
        raise KeyError("surprise")

    monkeypatch.setattr("diptych.recipes.find_recipe", broken)
    monkeypatch.delenv("DIPTYCH_DEBUG", raising=False)
    code, line = refusal_of(capsys, *TRAIN, "--data", "scenes:shapes")
    assert code == 1
    assert line.startswith("unexpected KeyError: 'surprise'. Set DIPTYCH_DEBUG=1 to see where")
    monkeypatch.setenv("DIPTYCH_DEBUG", "1")
    with pytest.raises(KeyError, match="surprise"):
        run([*TRAIN, "--data", "scenes:shapes"])


def test_a_real_process_ends_with_the_code_and_keeps_answers_and_progress_apart(made, tmp_path):
    good = command_line("search", made / "vectors", "red", "--json")
    assert good.returncode == 0
    assert len(json.loads(good.stdout)["hits"]) == 10
    assert good.stderr == ""
    arguments = ("embed", made / "run", "--data", made / "pictures", "--out", tmp_path, "--json")
    embedded = command_line(*arguments)
    assert embedded.returncode == 0
    assert json.loads(embedded.stdout)["rows"] == 24
    assert "24 pictures" in embedded.stderr
    wrong = command_line("search", made / "vectors")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("error: ")
