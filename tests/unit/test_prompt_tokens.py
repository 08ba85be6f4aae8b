"""Tokens of a prompt, estimated as the provider's published rules count them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.prompt_tokens import estimate


@pytest.mark.parametrize(
    ("model", "detail", "size", "tokens"),
    [
        ("gpt-4o", "LOW", (4000, 3000), 85),
        ("gpt-4o", "HIGH", (1024, 1024), 85 + 4 * 170),
        ("gpt-4o", "HIGH", (2048, 4096), 85 + 6 * 170),
        ("gpt-4o-2024-08-06", "HIGH", (512, 512), 85 + 170),
        ("gpt-4o-mini", "HIGH", (512, 512), 2833 + 5667),
        ("gpt-4.1", "AUTO", (16, 16), 85 + 170),
        ("gpt-4.1-mini", "HIGH", (1024, 1024), round(1024 * 1.62)),
        ("gpt-4.1-mini-2025-04-14", "LOW", (4000, 4000), round(1536 * 1.62)),
        ("gpt-5.2", "HIGH", (3200, 3200), 3000),
        ("o3", "LOW", (9, 9), 75),
        ("never-heard-of", "LOW", (9, 9), 85),
    ],
)
def test_an_image_counts_by_its_models_rule(model, detail, size, tokens):
    assert estimate(model, detail, 0, [size]) == tokens


def test_four_bytes_of_text_are_a_token():
    assert estimate("gpt-4o", "LOW", 401, []) == 101
    assert estimate("gpt-4o", "LOW", 0, []) == 1


@given(
    st.sampled_from(["gpt-4o", "gpt-4.1-mini", "x"]),
    st.sampled_from(["LOW", "HIGH", "AUTO"]),
    st.integers(1, 50_000),
    st.integers(1, 50_000),
)
def test_every_image_has_a_bounded_count(model, detail, width, height):
    assert 1 <= estimate(model, detail, 0, [(width, height)]) <= 10_000
