"""CLIP worked by hand: three pictures, three texts, every number on paper.

    python examples/clip_by_hand.py

prints the whole way from word vectors and patches to the loss and its gradient. The numbers are
chosen so that a pencil is enough up to the first exponential. Only numpy is used;
`diptych/losses/contrastive.py` computes the same losses for large batches, and
`tests/test_example_clip_by_hand.py` holds the two against each other.

Papers: CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343.
"""

from dataclasses import dataclass

import numpy as np

# Every word is a vector of two numbers.
WORDS = {"red": [1, 0], "blue": [0, 1], "ball": [1, 1], "box": [-1, 2]}
TEXTS = ["red ball", "blue ball", "blue box"]

# Every picture is two patches; a patch is (colour: red above 0, blue below; corners seen).
PICTURES = {
    "red ball": [[2, 0], [0, 0]],
    "blue ball": [[-2, 0], [1, 0]],  # on a reddish floor
    "blue box": [[-2, 2], [0, 2]],
}

# Each encoder: a linear map to three hidden numbers, ReLU, mean, a linear map to two numbers.
TEXT_HIDDEN = np.array([[1.0, 0, 1], [0, 1, -1]])
TEXT_PROJECTION = np.array([[3.0, 2], [0, 1], [2, 1]])
IMAGE_HIDDEN = np.array([[1.0, -1, 0], [0, 0, 1]])  # red, blue, corners
IMAGE_PROJECTION = np.array([[2.0, 0], [2, 4], [-1, 0]])

SCALE = 5.0
BIAS = -4.0  # only for the sigmoid loss


@dataclass(frozen=True)
class Encoded:
    """One text or picture on its way through its encoder."""

    parts: np.ndarray
    """(parts, 2): its words or patches."""

    hidden: np.ndarray
    """(parts, 3): after the linear map, before ReLU."""

    mean: np.ndarray
    """(3,): the mean over the parts of ReLU(hidden)."""

    projected: np.ndarray
    """(2,): before it is made a unit vector."""

    unit: np.ndarray
    """(2,): divided by its length; this is the embedding."""


@dataclass(frozen=True)
class Judged:
    """A loss, and how it changes with everything that it depends on."""

    probabilities: tuple[np.ndarray, ...]
    loss: float
    logits_grad: np.ndarray
    image_grad: np.ndarray
    text_grad: np.ndarray
    scale_grad: float


def encode(parts: list[list[int]], hidden_weight: np.ndarray, projection: np.ndarray) -> Encoded:
    """Linear, ReLU, mean over the parts, linear, unit length."""
    vectors = np.array(parts, dtype=float)
    hidden = vectors @ hidden_weight
    mean = np.maximum(hidden, 0).mean(axis=0)
    projected = mean @ projection
    return Encoded(vectors, hidden, mean, projected, projected / np.linalg.norm(projected))


def encode_all() -> tuple[list[Encoded], list[Encoded]]:
    """The pictures and the texts; number i of both is a pair."""
    pictures = [encode(patches, IMAGE_HIDDEN, IMAGE_PROJECTION) for patches in PICTURES.values()]
    texts = [
        encode([WORDS[word] for word in text.split()], TEXT_HIDDEN, TEXT_PROJECTION)
        for text in TEXTS
    ]
    return pictures, texts


def judge_by_softmax(image: np.ndarray, text: np.ndarray, scale: float) -> Judged:
    """CLIP: each picture chooses among the texts, each text among the pictures."""
    logits = scale * image @ text.T
    exponentials = np.exp(logits)
    by_image = exponentials / exponentials.sum(axis=1, keepdims=True)
    by_text = exponentials / exponentials.sum(axis=0, keepdims=True)
    target = np.eye(len(image))
    loss = -(np.log(by_image.diagonal()) + np.log(by_text.diagonal())).mean() / 2
    logits_grad = ((by_image - target) + (by_text - target)) / (2 * len(image))
    return with_embedding_gradients((by_image, by_text), loss, logits_grad, image, text, scale)


def judge_by_sigmoid(image: np.ndarray, text: np.ndarray, scale: float, bias: float) -> Judged:
    """SigLIP: each picture and text are asked alone whether they are a pair."""
    probability = 1 / (1 + np.exp(-(scale * image @ text.T + bias)))
    target = np.eye(len(image))
    right = np.where(target == 1, probability, 1 - probability)
    loss = -np.log(right).sum() / len(image)
    logits_grad = (probability - target) / len(image)
    return with_embedding_gradients((probability,), loss, logits_grad, image, text, scale)


def with_embedding_gradients(
    probabilities: tuple[np.ndarray, ...],
    loss: float,
    logits_grad: np.ndarray,
    image: np.ndarray,
    text: np.ndarray,
    scale: float,
) -> Judged:
    """logit[i, j] = scale * dot(image[i], text[j]), so each factor gets the others as slope."""
    image_grad = scale * logits_grad @ text
    text_grad = scale * logits_grad.T @ image
    scale_grad = float((logits_grad * (image @ text.T)).sum())
    return Judged(probabilities, float(loss), logits_grad, image_grad, text_grad, scale_grad)


def show_weights(hidden_weight: np.ndarray, projection: np.ndarray) -> None:
    """Print the two maps of an encoder."""
    maps = {"linear": hidden_weight, "projection": projection}
    for name, weight in maps.items():
        print(f"  {name:<10} vector times [{', '.join(map(row, weight))}]")
    print()


def show_encoding(name: str, part_names: list[str], encoded: Encoded) -> None:
    """Print one text or picture, step by step."""
    print(f"  {name}")
    for part, vector, hidden in zip(part_names, encoded.parts, encoded.hidden, strict=True):
        after = np.maximum(hidden, 0)
        print(f"    {part:<8} {row(vector)}  linear {row(hidden)}  ReLU {row(after)}")
    length = np.linalg.norm(encoded.projected)
    print(f"    mean {row(encoded.mean)}  projected {row(encoded.projected)}", end="  ")
    print(f"length {length:g}  unit {row(encoded.unit)}")


def show_matrix(title: str, matrix: np.ndarray, digits: int) -> None:
    """Print a matrix of pictures (down) against texts (across)."""
    print(f"\n  {title}")
    print(" " * 25 + "".join(f"{text!r:>13}" for text in TEXTS))
    for name, numbers in zip(PICTURES, matrix, strict=True):
        cells = "".join(f"{number + 0.0:>13.{digits}f}" for number in numbers)
        print(f"    {'picture of ' + name:<21}{cells}")


def row(numbers: np.ndarray) -> str:
    """A vector in a line, without needless digits."""
    return "(" + ", ".join(f"{number + 0.0:g}" for number in np.round(numbers, 4)) + ")"


def show_encoders(pictures: list[Encoded], texts: list[Encoded]) -> None:
    """Steps 1 and 2: from words and patches to unit vectors."""
    print("1. Texts become vectors\n")
    print("  Each word vector goes through a linear map and ReLU (negative numbers become 0).")
    print("  The mean over the words is projected to two numbers and divided by its length.\n")
    show_weights(TEXT_HIDDEN, TEXT_PROJECTION)
    for name, encoded in zip(TEXTS, texts, strict=True):
        show_encoding(repr(name), name.split(), encoded)
    print("\n2. Pictures become vectors\n")
    print("  The same with two patches in place of words, and weights of their own. A patch is")
    print("  (colour: red above 0, blue below; corners), so the hidden numbers see red, blue,")
    print("  and corners.\n")
    show_weights(IMAGE_HIDDEN, IMAGE_PROJECTION)
    for name, encoded in zip(PICTURES, pictures, strict=True):
        show_encoding(f"picture of a {name}", ["patch 1", "patch 2"], encoded)
    print("\n  We do normalise, as CLIP does: all six vectors now have length 1, so that a dot")
    print("  product is the cosine of the angle between them, and only direction counts.")


def show_softmax(image: np.ndarray, text: np.ndarray) -> None:
    """Steps 3 to 6: CLIP's loss and its gradient."""
    judged = judge_by_softmax(image, text, SCALE)
    by_image, by_text = judged.probabilities
    print("\n3. Every picture meets every text")
    show_matrix("similarity = dot(picture, text)", image @ text.T, 2)
    print("\n  The text 'red ball' is nearer to the wrong picture (0.96) than to its own (0.80).")
    show_matrix(f"logits = scale * similarity, scale = {SCALE:g}", SCALE * image @ text.T, 2)
    print("\n4. Softmax: who belongs to whom?")
    show_matrix("along each row: the picture chooses a text (rows sum to 1)", by_image, 4)
    show_matrix("along each column: the text chooses a picture (columns sum to 1)", by_text, 4)
    print("\n5. The loss: how surprised are the true pairs, on the diagonal?\n")
    print(f"  pictures: mean of -ln{row(by_image.diagonal())} = {surprise(by_image):.4f}")
    print(f"  texts:    mean of -ln{row(by_text.diagonal())} = {surprise(by_text):.4f}")
    print(f"  loss:     the mean of both = {judged.loss:.4f}")
    print(f"  A model that knows nothing has ln 3 = {np.log(3):.4f}.")
    print("\n6. The gradient: probability minus target")
    print("\n  target is 1 on the diagonal, else 0. Both softmaxes count one half, and the loss")
    print("  is a mean over 3 pairs: d loss / d logit = (rows - target + columns - target) / 6.")
    show_matrix("d loss / d logit", judged.logits_grad, 4)
    print("\n  Learning goes against the gradient: logits with a minus rise, the others fall.")
    print("  The largest share lies in the first column, where the mistake was.")
    show_gradients(judged)


def show_gradients(judged: Judged) -> None:
    """How the embeddings and the scale should change."""
    print("\n  d loss / d picture = scale * (d loss / d logit) times the texts")
    for name, grad in zip(PICTURES, judged.image_grad, strict=True):
        print(f"    {name:<10} {row(grad)}")
    print("  d loss / d text = scale * (d loss / d logit, turned over) times the pictures")
    for name, grad in zip(TEXTS, judged.text_grad, strict=True):
        print(f"    {name:<10} {row(grad)}")
    print(f"  d loss / d scale = sum of (d loss / d logit) * similarity = {judged.scale_grad:.4f}")


def show_sigmoid(image: np.ndarray, text: np.ndarray) -> None:
    """Step 7: the same pairs, judged as SigLIP does."""
    judged = judge_by_sigmoid(image, text, SCALE, BIAS)
    print("\n7. SigLIP: nine questions in place of six choices")
    print("\n  Each picture and text are asked alone: are you a pair? The answer is the sigmoid")
    print("  of the logit, 1 / (1 + exp(-logit)); a bias lets 'no' be the usual answer.")
    show_matrix(f"logits = {SCALE:g} * similarity - {-BIAS:g}", SCALE * image @ text.T + BIAS, 2)
    show_matrix("sigmoid: probability of being a pair", judged.probabilities[0], 4)
    print("\n  loss = sum of -ln(p) on the diagonal and -ln(1 - p) elsewhere, over 3 pictures")
    print(f"       = {judged.loss:.4f}")
    show_matrix("d loss / d logit = (probability - target) / 3", judged.logits_grad, 4)
    show_gradients(judged)
    print(f"  d loss / d bias = sum of d loss / d logit = {judged.logits_grad.sum():.4f}")


def surprise(probabilities: np.ndarray) -> float:
    """Mean of -ln of the diagonal."""
    return float(-np.log(probabilities.diagonal()).mean())


def main() -> None:
    """Print the whole way."""
    pictures, texts = encode_all()
    image = np.stack([encoded.unit for encoded in pictures])
    text = np.stack([encoded.unit for encoded in texts])
    show_encoders(pictures, texts)
    show_softmax(image, text)
    show_sigmoid(image, text)


if __name__ == "__main__":
    main()
