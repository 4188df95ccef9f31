"""Exact search in a folder of vectors: every one is compared with the query.

`library.py` searches a library, which can be added to, filtered and is indexed.
"""

import numpy as np
from jaxtyping import Float

from diptych.data.vectors import Vectors
from diptych.errors import RequestError
from diptych.search.hit import Hit


def search(vectors: Vectors, query: Float[np.ndarray, " dimensions"], count: int = 10) -> list[Hit]:
    """The pictures nearest to a query, best first; equal scores in stored order.

    Args:
        vectors: Unit vectors of pictures.
        query: Unit vector of a text or a picture, by the same model.
        count: How many to give; fewer if there are fewer.

    Raises:
        RequestError: `count` is below 1.
    """
    if count < 1:
        raise RequestError(f"{count} pictures cannot be given. Ask for 1 or more, such as -k 10.")
    scores = vectors.vectors @ query.astype(np.float32)
    order = np.argsort(-scores, kind="stable")[:count]
    return [
        Hit(
            key=vectors.keys[row],
            path=vectors.paths[row],
            score=float(scores[row]),
            captions=vectors.captions[row],
            row=int(row),
        )
        for row in order
    ]
