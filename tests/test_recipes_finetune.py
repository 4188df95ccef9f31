"""Fine-tuning as a whole: settings that suit, the model that is kept, what is judged and said."""

import io
import json

import numpy as np
import pytest
import torch
from small import picture_folder, small_run

import diptych
from diptych.checkpoint import load_bundle, save_bundle
from diptych.cli import run as command
from diptych.data.opening import open_source
from diptych.data.source import SourceOptions
from diptych.errors import CheckpointError, RequestError
from diptych.evaluate.metrics import Interval
from diptych.evaluate.retrieval import Direction, RetrievalResult, judge_retrieval
from diptych.nn.lora import merged
from diptych.predict.model import load
from diptych.recipes import find_recipe
from diptych.recipes.before_after import fine_tune
from diptych.recipes.before_after_text import verdict
from diptych.recipes.exam import MOST_TRIED, STAND_IN, set_exam, set_exams
from diptych.recipes.finetune import suited
from diptych.train.log import Live
from diptych.train.loop import train
from diptych.train.lora_files import load_adapter
from diptych.train.start import inherit, open_start

NARROW = ("data.val_pairs=20", "optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A trained model."""
    folder = tmp_path_factory.mktemp("old") / "run"
    train(small_run("steps=2", "data.val=null"), folder, live=Live(io.StringIO()))
    return folder


@pytest.fixture
def quiet():
    return Live(io.StringIO())


@pytest.fixture
def mine(tmp_path):
    """The new task: pictures of one's own."""
    return picture_folder(tmp_path / "mine", 24)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Enough pictures that some can be chosen on and others reported."""
    return picture_folder(tmp_path_factory.mktemp("others"), 440)


def run_from(old, mine, *settings, val=True):
    run = small_run(f"data.source={mine}", f"data.val={mine if val else 'null'}", *NARROW)
    return inherit(run, str(old), open_start(str(old), old, False)).override(list(settings))


def sized(width):
    """The recipe with a model of this width."""
    run = find_recipe("finetune")
    towers = (f"model.image.width={width}", f"model.text.width={width}", "model.image.heads=4")
    return run.override([*towers, "model.text.heads=4"])


@pytest.mark.parametrize(
    ("pairs", "width", "batch", "epochs", "lr"),
    [
        (5, 256, 5, 10, 5.5e-5),
        (40, 256, 8, 10, 6.9e-5),
        (300, 256, 32, 10, 1.4e-4),
        (3872, 256, 256, 10, 3.9e-4),
        (10_000, 768, 256, 10, 1.3e-4),
        (50_000, 1024, 256, 2, 9.8e-5),
        (5_000_000, 1024, 256, 1, 9.8e-5),
        (None, 1024, 256, 10, 9.8e-5),
    ],
)
def test_rate_batch_and_length_suit_the_pairs_and_the_model(pairs, width, batch, epochs, lr):
    run = suited(sized(width), pairs)
    assert (run.batch, run.epochs) == (batch, epochs)
    assert run.optimizer.lr == pytest.approx(lr)
    assert run.optimizer.weight_decay == 0
    assert run.finetune.layer_decay == 0.75


def test_a_batch_that_is_asked_for_sets_the_rate():
    run = suited(sized(256), 3872, batch=64)
    assert (run.batch, run.optimizer.lr) == (64, pytest.approx(3.9e-4 / 2, rel=0.05))


def test_adapters_have_three_times_the_rate():
    lora = sized(256).override(["finetune.lora.rank=8"])
    factor = suited(lora, 3872).optimizer.lr / suited(sized(256), 3872).optimizer.lr
    assert factor == pytest.approx(3, rel=0.05)  # rates have two digits


def test_other_recipes_keep_their_own(old):
    run = inherit(find_recipe("clip-small"), str(old), open_start(str(old), old, False))
    assert suited(run, 100) == run


def test_the_folder_is_the_model_between_and_the_report_is_beside_it(
    old, mine, others, tmp_path, quiet
):
    held = (f"finetune.held_out={others}", "finetune.most_lost=1")
    out = tmp_path / "out"
    tuned = fine_tune(run_from(old, mine, *held), out, live=quiet)
    found = json.loads((out / "finetune.json").read_text())
    assert tuned.judged == found
    assert found["alpha"] == 1  # everything may be lost
    assert [row["alpha"] for row in found["sweep"]] == [step / 10 for step in range(11)]
    kept = diptych.load(out)
    assert kept.fingerprint == found["model_fingerprint"]
    assert kept.path == out / "model"
    assert found["start"] == {
        "model": str(old),
        "fingerprint": load_bundle(old / "checkpoints/last").fingerprint,
    }
    asked = found["asked"]
    assert (asked["in_domain"]["pictures"], asked["held_out"]["pictures"]) == (20, 20)
    assert asked["held_out"]["chosen_on_others"]
    assert not asked["held_out"]["stand_in"]
    assert set(found["report"]) == {"before", "after", "chosen"}
    source = open_source(str(others)).name
    for words in (
        f"chosen on held out: 20 pictures of {source}\n",
        f"reported on held out: 20 pictures of {source}; 95 %",
        "reported on new task: 20 pictures of",
        "alpha 1, the furthest from before at which neither text nor image R@10 of what is held",
        "\nheld out, on pictures not used for choosing: text R@10 ",
        "the bound of 100 points was kept there",
        "\nnew task: text R@10 ",
    ):
        assert words in tuned.text, words
    assert "part 0" not in tuned.text


def found_with(*recalls):
    """A result with these recalls of captions and of pictures."""
    ways = []
    for recall in recalls:
        interval = Interval(recall, recall, recall)
        ways.append(Direction(dict.fromkeys((1, 5, 10), interval), interval, {}, 20, 20))
    return RetrievalResult(*ways, 20, 20, 20, 2, 0)


def test_the_verdict_says_what_the_reported_numbers_are_and_whether_the_bound_holds(old, mine):
    run = run_from(old, mine, f"finetune.held_out={mine}")
    exams = set_exams(run)
    before = found_with(0.5, 0.5)
    for image, kept in ((0.49, "was kept"), (0.485, "was not kept")):
        chosen = found_with(0.6, image)
        report = {"before": dict.fromkeys(exams.asked, before)}
        report["chosen"] = dict.fromkeys(exams.asked, chosen)
        new, held = verdict(run.finetune, exams, report)
        assert new.startswith("new task: text R@10 50.0 -> 60.0 (+10.0 points), image R@10 50.0")
        assert "held out, on the pictures it was chosen on" in held
        assert f"image R@10 50.0 -> {100 * image:.1f} (-" in held
        assert held.endswith(f"the bound of 1 point {kept} there")


def test_the_numbers_are_those_of_evaluate(old, mine, others, tmp_path, quiet):
    settings = ("finetune.alpha=0.3", f"finetune.held_out={others}")
    out = tmp_path / "out"
    fine_tune(run_from(old, mine, *settings), out, live=quiet)
    found = json.loads((out / "finetune.json").read_text())
    assert found["sweep"] == []
    places = {"before": out / "before", "after": out / "checkpoints/last", "chosen": out}
    sources = {"in_domain": open_source(str(mine)), "held_out": open_source(str(others))}
    for name, place in places.items():
        for task, source in sources.items():
            judged = judge_retrieval(load(place, device="cpu"), source, limit=20)
            assert judged.result.to_dict() == found["report"][name][task], (name, task)


def test_the_model_lies_where_alpha_says(old, mine, tmp_path, quiet):
    out = tmp_path / "out"
    fine_tune(run_from(old, mine, "finetune.alpha=0.3", "steps=2"), out, live=quiet)
    places = (out / "before", out / "checkpoints/last", out / "model")
    before, after, kept = (load_bundle(place).model.state_dict() for place in places)
    for name, value in kept.items():
        torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * after[name])
    assert load_bundle(out / "model").trained_on == open_source(str(mine)).fingerprint


def test_a_model_of_another_library_says_so_until_the_end(old, mine, tmp_path, quiet):
    bundle, other = load_bundle(old / "checkpoints/last"), tmp_path / "theirs"
    other.mkdir()
    save_bundle(other, bundle.model, bundle.tokenizer, bundle.transform, made_by="open_clip")
    out = tmp_path / "out"
    fine_tune(run_from(other, mine, "finetune.alpha=0.3", "steps=1"), out, live=quiet)
    for place in ("before", "checkpoints/last", "model"):
        assert load_bundle(out / place).made_by == "open_clip", place


def test_nothing_may_be_lost_if_so_said_and_the_start_is_kept(old, mine, others, tmp_path, quiet):
    """A rate that destroys the model: nothing but the start loses nothing."""
    settings = ("finetune.most_lost=0", f"finetune.held_out={others}", "optimizer.lr=3")
    out = tmp_path / "out"
    tuned = fine_tune(run_from(old, mine, *settings), out, live=quiet)
    sweep = tuned.judged["sweep"]
    allowed = 0
    for row in sweep:
        ways = ("text_to_image_recall@10", "image_to_text_recall@10")
        if all(row["held_out"][way] >= sweep[0]["held_out"][way] for way in ways):
            allowed = row["alpha"]
    assert tuned.judged["alpha"] == allowed
    if allowed == 0:
        kept, before = (load_bundle(out / name).model for name in ("model", "before"))
        assert all(
            torch.equal(value, before.state_dict()[name])
            for name, value in kept.state_dict().items()
        )


def test_without_held_out_pairs_half_way_is_taken_and_a_stand_in_is_judged(
    old, mine, tmp_path, quiet
):
    tuned = fine_tune(run_from(old, mine, "steps=1", val=False), tmp_path / "out", live=quiet)
    assert tuned.judged["alpha"] == 0.5
    assert tuned.judged["asked"]["held_out"]["stand_in"]
    assert tuned.judged["asked"]["held_out"]["source"] == STAND_IN
    assert "in_domain" not in tuned.judged["asked"]
    assert tuned.judged["sweep"] == []
    assert (
        "reported on generated scenes, as nothing is held out: 20 pictures of scenes" in tuned.text
    )
    assert "the bound of" not in tuned.text
    assert "chosen: half way between before and after, since nothing says what is" in tuned.text
    assert (
        "warning: nothing says what the model is not to forget, so half way between"
        in (quiet.stream.getvalue().partition("step 1")[0])
    )


def test_adapters_of_the_kept_model_are_beside_it(old, mine, tmp_path, quiet):
    settings = ("finetune.lora.rank=2", "finetune.alpha=0.4")
    out = tmp_path / "out"
    fine_tune(run_from(old, mine, *settings), out, live=quiet)
    adapted = load_bundle(out / "before").model
    load_adapter(adapted, out / "model" / "adapter")
    kept = load_bundle(out / "model").model.state_dict()
    for name, value in merged(adapted).state_dict().items():
        torch.testing.assert_close(value, kept[name], atol=1e-6, rtol=0)


def test_a_small_held_out_source_is_not_divided(old, mine, tmp_path):
    exams = set_exams(run_from(old, mine, f"finetune.held_out={mine}"))
    assert exams.choosing is exams.reported
    assert not exams.divided
    assert exams.notes[-1].startswith("warning: --held-out has the very pairs of --data: its num")


def test_pairs_that_are_learned_and_asked_are_named_before_the_training(old, mine, tmp_path):
    other = picture_folder(tmp_path / "other", 12)
    for setting, option in ((f"data.val={mine}", "--val"), (f"finetune.held_out={mine}", "--held")):
        settings = (f"data.val={other}", f"finetune.held_out={other}", setting)
        notes = set_exams(run_from(old, mine, *settings)).notes
        assert [note.partition(" has the very pairs of --data")[0] for note in notes] == [
            f"warning: {option}{'-out' if option == '--held' else ''}"
        ]


def test_what_is_tried_is_asked_of_few_pictures_and_what_is_reported_of_all(old, mine):
    exam = set_exams(run_from(old, mine)).in_domain
    few = exam.first(3)
    assert (len(few.pixels), few.ids) == (3, exam.ids[:3])
    assert few.texts == [t for t, p in zip(exam.texts, exam.picture_of_text, strict=True) if p < 3]
    assert few.picture_of_text.max() == 2
    assert exam.first(len(exam.ids)) is exam
    assert MOST_TRIED == 1000


def test_a_run_that_is_not_judged_is_no_model_yet(old, mine, tmp_path, quiet):
    out = tmp_path / "out"
    run = run_from(old, mine, "steps=1", "finetune.alpha=1", val=False)
    train(run, out, live=quiet)
    words = r"out is a fine-tuning run that has not been judged yet.*or name .*checkpoints/last"
    with pytest.raises(CheckpointError, match=words):
        diptych.load(out)
    fine_tune(run, out, resume=True, live=quiet)
    assert diptych.load(out).path == out / "model"
    train(run.override(["steps=2"]), out, resume=True, live=quiet)  # as if killed before judging
    with pytest.raises(CheckpointError, match=words):
        diptych.load(out)
    (out / "finetune.json").write_text("{")
    with pytest.raises(CheckpointError, match=words):
        diptych.load(out)


def test_parts_of_a_held_out_source_share_no_picture(old, mine, others):
    settings = (f"finetune.held_out={others}", "data.val_pairs=260")
    exams = set_exams(run_from(old, mine, *settings, "finetune.choose_on=0.25"))
    assert exams.divided
    assert not set(exams.choosing.ids) & set(exams.reported.ids)
    assert 80 < len(exams.choosing.ids) < 140  # a quarter of 440, by their captions
    assert len(exams.reported.ids) == 260


def test_a_source_without_end_cannot_be_held_out_and_nothing_is_trained(old, mine, tmp_path):
    run = run_from(old, mine, "finetune.held_out=scenes:shapes")
    with pytest.raises(RequestError, match="scenes:shapes has no end, so no part of it can be"):
        fine_tune(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exam_leaves_out_and_names_what_cannot_be_read(old, tmp_path):
    folder = picture_folder(tmp_path / "some", 5, bad=(1, 3))
    transform = load_bundle(old / "checkpoints/last").transform
    exam = set_exam(open_source(str(folder), SourceOptions()), transform, 99)
    assert len(exam.ids) == 3
    assert exam.pixels.dtype == np.uint8
    assert [key.rpartition("#")[2] for key in exam.bad] == ["1", "3"]
    with pytest.raises(RequestError, match="has 1 picture that can be read"):
        set_exam(open_source(str(picture_folder(tmp_path / "bad", 3, bad=(1, 2)))), transform, 99)


def test_a_run_that_is_stopped_judges_nothing_and_goes_on_later(old, mine, tmp_path, quiet):
    out = tmp_path / "out"
    run = run_from(old, mine, "steps=3", "finetune.alpha=1")
    first = fine_tune(run.override(["steps=2"]), out, live=quiet)
    mark = first.judged["model_fingerprint"]
    second = fine_tune(run, out, resume=True, live=quiet)
    assert second.training.new_steps == 1
    assert second.judged["model_fingerprint"] != mark
    again = fine_tune(run, out, resume=True, live=quiet)
    assert again.training.new_steps == 0
    assert again.judged == second.judged


def arguments(old, mine, out, *more):
    options = ("--from", old, "--data", mine, "--out", out, "--val", mine, "--steps", 2)
    settings = ("--set", "data.val_pairs=20", "--set", "data.workers=0")
    return [str(one) for one in ("train", "finetune", *options, *settings, *more)]


def test_the_command_trains_judges_and_says_so(old, mine, others, tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--held-out", others, "--batch", "6", "--json")
    assert command(arguments(old, mine, out, *more, "--set", "finetune.lora.rank=2")) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["steps"] == 2
    assert answer["model"] == str(out / "model")
    assert "batch 6, rate 1.4e-3, 2 steps, layer_decay 0.75, adapters of rank 2" in said.err
    assert answer["finetune"] == json.loads((out / "finetune.json").read_text())
    assert f"beginning with {old}" in said.err
    settings = json.loads((out / "run.json").read_text())
    assert settings["batch"] == 6
    assert settings["finetune"]["lora"]["rank"] == 2
    assert settings["finetune"]["held_out"] == str(others)
    assert settings["optimizer"]["lr"] == pytest.approx(3 * 0.1 / 32 * (6 / 256) ** 0.5, rel=0.05)
    assert settings["data"]["transform"]["image_size"] == 32


def test_the_command_shows_tables_to_people(old, mine, tmp_path, capsys):
    assert command(arguments(old, mine, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "text R@10" in said
    assert "nothing says what is not to be forgotten" in said
    out = tmp_path / "out"
    assert (
        f"the chosen model: {out}/model (what diptych.load('{out}') gives); before: {out}/bef"
        in (said)
    )
    assert said.rstrip().endswith(f"every number of it: {out}/finetune.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--held-out", "scenes:shapes:val"), "--held-out is for a run that begins with a trained"),
        (("--held-out-where", "a = 1"), "--held-out-where is given and --held-out is not"),
        (("--from", "nowhere"), "nowhere"),
    ],
)
def test_options_that_do_not_fit_are_refused(mine, tmp_path, capsys, options, words):
    given = ["train", "clip-tiny", "--data", str(mine), "--out", str(tmp_path / "out"), *options]
    assert command(given) == 2
    assert words in capsys.readouterr().err


def test_the_recipe_alone_says_what_is_missing(mine, tmp_path, capsys):
    given = ["train", "finetune", "--data", str(mine), "--out", str(tmp_path / "out")]
    assert command(given) == 2
    assert "finetune changes a trained model and none is given. Give one: --from MODEL" in (
        capsys.readouterr().err
    )
