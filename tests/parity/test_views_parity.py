"""The view that evaluation sees is, pixel for pixel, torchvision's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax.data.views import EvalView, eval_view

pytestmark = pytest.mark.parity


@settings(max_examples=100, deadline=None)
@given(
    short=st.integers(3, 200),
    stretch=st.floats(1, 20),
    tall=st.booleans(),
    size=st.sampled_from([16, 31, 64, 224]),
    seed=st.integers(0, 99),
)
def test_the_view_of_evaluation_is_torchvisions_bicubic_resize_and_centre_crop(short, stretch, tall, size, seed):
    transforms = pytest.importorskip("torchvision.transforms")
    sides = (int(short * stretch), short) if tall else (short, int(short * stretch))
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8))
    resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
    expected = transforms.CenterCrop(size)(resize(image))
    np.testing.assert_array_equal(eval_view(image, EvalView(size)), np.asarray(expected))
