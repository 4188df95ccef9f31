"""Every recipe is a valid run, and in a small size it trains, saves and loads."""

import pytest
import torch
from small import picture_folder, random_model, woken
from small_change import pair_batch, woken_state

from diptych.batch import ImageTextBatch
from diptych.checkpoint import load_any_bundle, save_bundle
from diptych.comm import Comm
from diptych.data.tokenizer import Tokenizer
from diptych.errors import RequestError
from diptych.models.change import ChangeModelConfig
from diptych.models.kinds import build_model, reads_sequences
from diptych.recipes import RECIPES, about, find_recipe
from diptych.recipes.evaluators import recall_evaluator
from diptych.train.change_step import ChangeObjective
from diptych.train.run import Run
from diptych.train.step import Objective, chance_loss

COUNT = 8
FROZEN = ((), ("model.image.frozen=true",), ("model.text.frozen=true",))


def tiny(name, *settings):
    """The recipe in its tiny size: its family's shape, less of it."""
    run = find_recipe(name)
    change = isinstance(run.model, ChangeModelConfig)
    embed = 32 if change or run.model.objective == "sigmoid" else 24
    shrink = ("layers=1", "width=32", "heads=2", "mlp_width=64")
    image = (*shrink, "patch_size=8")
    if run.model.image.kind == "resnet":
        image = (f"layers={[1] * len(run.model.image.layers)}", "width=8", "heads=2")
    return run.override(
        [
            *(f"model.image.{setting}" for setting in image),
            *(f"model.text.{setting}" for setting in shrink),
            *(() if change else (f"model.embed={embed}",)),
            *("model.text.vocabulary=300", "model.text.context=12", "model.image.image_size=32"),
            *("data.transform.image_size=32", *settings),
        ]
    )


def batch_of(run):
    if reads_sequences(run.model):
        return pair_batch(run, COUNT)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 300, (COUNT, run.model.text.context), generator=generator)
    text[:, -1] = run.model.text.end_token
    image = torch.randint(0, 256, (COUNT, 32, 32, 3), generator=generator).byte()
    return ImageTextBatch(image=image, text=text, groups=torch.arange(COUNT), position=0)


def objective_of(run):
    if isinstance(run.model, ChangeModelConfig):
        rest = (run.data.transform, Comm(), torch.device("cpu"))
        return ChangeObjective(run.model, *rest, bf16=False)
    return Objective(run.data.transform, Comm(), torch.device("cpu"), bf16=False, tile=None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_run_of_its_own_name(name):
    run = find_recipe(name)
    assert run.recipe == name
    assert Run(**run.model_dump()) == run
    with torch.device("meta"):
        build_model(run.model)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_in_one_line_what_it_is(name):
    assert about(name).endswith(".")
    assert ":" in about(name)
    assert len(about(name)) < 100


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(RequestError, match=r"no recipe 'siglip-tinny'\. Did you mean 'siglip-tiny"):
        find_recipe("siglip-tinny")


@pytest.mark.parametrize("frozen", FROZEN, ids=["all", "frozen image", "frozen text"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_has_a_finite_loss_and_its_gradient_reaches_what_is_trained(name, frozen):
    state = ("model.image.state=none",) if FROZEN[1] == frozen and "change" in name else ()
    run = tiny(name, *state, *frozen)  # a frozen tower learns no state
    torch.manual_seed(0)
    model = woken_state(woken(build_model(run.model)))
    loss = objective_of(run)(model, batch_of(run))
    assert loss.isfinite()
    loss.backward()
    for part, weight in model.named_parameters():
        held = part.startswith(("image.", "text.")) and f"model.{part.split('.')[0]}.frozen=true"
        if held in frozen:
            assert weight.grad is None, part
        else:
            assert weight.grad is not None, part
            assert weight.grad.abs().max() > 0, part


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_that_was_saved_gives_the_same_output(name, tmp_path):
    run = tiny(name)
    tokenizer = Tokenizer.learn(["a red thing"], vocabulary=300, context=12)
    torch.manual_seed(0)
    model = build_model(run.model).eval()
    mark = save_bundle(tmp_path, model, tokenizer, run.data.transform)
    loaded = load_any_bundle(tmp_path)
    assert loaded.fingerprint == mark
    assert loaded.transform == run.data.transform
    batch = batch_of(run)
    losses = [objective_of(run)(one.eval(), batch).item() for one in (model, loaded.model)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize("batch", [2, 7, 64])
def test_chance_level_is_the_lowest_loss_of_equal_vectors(objective, batch):
    from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

    same = torch.nn.functional.normalize(torch.ones(batch, 4, dtype=torch.float64), dim=1)
    one = torch.tensor(1.0, dtype=torch.float64)
    if objective == "softmax":
        losses = [softmax_contrastive(same, same, one).item()]
    else:
        biases = torch.linspace(-8, 1, 901, dtype=torch.float64)
        losses = [sigmoid_contrastive(same, same, one, bias).item() for bias in biases]
    assert min(losses) == pytest.approx(chance_loss(objective, batch), rel=1e-4)


def test_recall_is_measured_on_the_validation_pairs(tmp_path):
    model = random_model(tmp_path)
    run = tiny("clip-tiny", "data.val=scenes:shapes:val", "data.val_pairs=30")
    numbers = recall_evaluator(run)(model._net, model._bundle.tokenizer)
    assert set(numbers) == {
        f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 10)
    }
    assert all(0 <= value <= 1 for value in numbers.values())


def test_recall_without_validation_pairs_is_refused():
    with pytest.raises(RequestError, match="recall needs pairs to judge on"):
        recall_evaluator(find_recipe("clip-tiny"))


def test_recall_says_how_many_pictures_were_bad(tmp_path):
    model = random_model(tmp_path)
    folder = picture_folder(tmp_path / "val", 12, bad=(3, 7))
    numbers = recall_evaluator(tiny("clip-tiny", f"data.val={folder}"))(
        model._net, model._bundle.tokenizer
    )
    assert numbers["bad_pictures"] == 2


@pytest.mark.parametrize(("count", "bad"), [(1, ()), (3, (0, 2)), (2, (0, 1))])
def test_fewer_than_two_pictures_to_judge_on_are_refused_before_training(tmp_path, count, bad):
    folder = picture_folder(tmp_path / "val", count, bad=bad)
    with pytest.raises(
        RequestError, match=f"has {count - len(bad)} picture that can be read.*2 to"
    ):
        recall_evaluator(tiny("clip-tiny", f"data.val={folder}"))
