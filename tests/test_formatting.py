from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from labelwise.formatting import plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.inf, "inf"),
        (np.float32(-np.inf), "-inf"),
        (float("nan"), None),
        (jnp.array([1.0, jnp.nan, jnp.inf]), [1.0, None, "inf"]),
        ((1, True, None, "µ"), [1, True, None, "µ"]),
        ({1: np.array([[2, 3]])}, {"1": [[2, 3]]}),
        (Path("/data/dwi.nii"), "/data/dwi.nii"),
    ],
)
def test_values_as_json_data(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


def test_what_has_no_form_in_json_stays():
    value = object()
    assert plain([value]) == [value]
