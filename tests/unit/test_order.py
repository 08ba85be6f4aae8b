"""What a job's key stands for."""

from services.batcher.order import Order, decode, encode, first_difference

ORDER = Order("", ("ab" * 32,), 'What is "this"?', "BATCH", "", "AUTO", None, {"a": "1"}, None)


def test_an_order_survives_its_storage():
    assert decode(encode(ORDER)) == ORDER


def test_the_same_order_with_its_labels_in_another_order_is_the_same():
    left, right = ORDER._replace(labels={"a": "1", "b": "2"}), ORDER._replace(labels={"b": "2", "a": "1"})

    assert first_difference(encode(left), encode(right)) is None


def test_an_order_that_was_stored_before_a_field_came_is_the_same_without_it():
    old = encode(ORDER).replace('"allow_batch_fallback":false,', "")

    assert "allow_batch_fallback" not in old
    assert first_difference(old, encode(ORDER)) is None


def test_the_first_field_that_differs_is_named_as_in_the_request():
    cases = {
        "prompt": ORDER._replace(prompt="Why?", model="x"),
        "images": ORDER._replace(image_ids=("cd" * 32,)),
        "deadline": ORDER._replace(deadline_us=5),
        "max_output_tokens": ORDER._replace(max_output_tokens=7),
        "allow_batch_fallback": ORDER._replace(allow_batch_fallback=True),
    }
    for field, other in cases.items():
        difference = first_difference(encode(ORDER), encode(other))
        assert difference is not None
        assert difference.field == field
