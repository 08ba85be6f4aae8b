"""Which fault strikes when depends on the script, the seed and the number of the occurrence, and on nothing else."""

import pytest

from sandbox.openai_twin.fault_kinds import KINDS, OPERATIONS
from sandbox.openai_twin.faults import FaultMistake, Script, read_storm
from sandbox.openai_twin.known_failures import FOR_THE_CLIENT, KNOWN_FAILURES


def drawn(script: Script, operation: str, times: int, objects: tuple[str, ...] = ()) -> list[list[str]]:
    return [[strike.name for strike in script.draw(operation, "m", objects)] for _ in range(times)]


def test_faults_are_consumed_in_their_order_one_at_a_time() -> None:
    script = Script.read({"faults": ["rate_limited", {"name": "server_error", "count": 2}]})

    assert drawn(script, "batches.create", 4) == [["rate_limited"], ["server_error"], ["server_error"], []]


def test_on_a_batch_all_that_can_strike_do_together() -> None:
    script = Script.read({"faults": ["garbage_line", "file_id_empty"]})

    assert drawn(script, "batch.finish", 2) == [["garbage_line", "file_id_empty"], []]


def test_nth_counts_only_what_matches() -> None:
    script = Script.read({"faults": [{"name": "line_server_error", "object": "b", "nth": 2}]})

    assert drawn(script, "batch.line", 3, ("batch", "a")) == [[], [], []]
    assert drawn(script, "batch.line", 3, ("batch", "b")) == [[], ["line_server_error"], []]


def test_a_fault_without_an_end_strikes_always() -> None:
    script = Script.read({"faults": [{"name": "other_key", "count": None, "operation": "batches.list"}]})

    assert drawn(script, "batches.list", 3) == [["other_key"]] * 3
    assert drawn(script, "batches.retrieve", 1) == [[]]


def test_a_model_is_waited_for() -> None:
    script = Script.read({"faults": [{"name": "ends_expired", "model": "other"}]})

    assert drawn(script, "batch.run", 1) == [[]]
    assert [strike.name for strike in script.draw("batch.run", "other", ())] == ["ends_expired"]


def test_a_probability_draws_the_same_under_the_same_seed() -> None:
    def draws(seed: int) -> list[list[str]]:
        script = Script.read({"seed": seed, "faults": [{"name": "unavailable", "count": None, "probability": 0.5}]})
        return drawn(script, "files.list", 50)

    assert draws(1) == draws(1) != draws(2)
    assert 10 < sum(map(len, draws(1))) < 40


def test_a_storm_draws_by_operation_and_not_by_the_order_of_others() -> None:
    calm, busy = (Script.read({"storm": "7:0.5"}) for _ in range(2))
    drawn(busy, "files.create", 9)

    assert drawn(calm, "batches.create", 30) == drawn(busy, "batches.create", 30)


def test_a_storm_draws_only_what_suits_and_passes_by_itself() -> None:
    script = Script.read({"storm": {"seed": 5, "rate": 1}})

    for operation in OPERATIONS:
        names = {name for names in drawn(script, operation, 100) for name in names}
        assert all(operation in KINDS[name].operations and KINDS[name].storm for name in names)


def test_a_script_that_is_written_and_read_goes_on_where_it_was() -> None:
    script = Script.read({"seed": 3, "faults": ["stalls", {"name": "unavailable", "nth": 2}], "storm": "1:0.5"})
    drawn(script, "batches.list", 1)
    again = Script.read(script.to_json())

    assert again == script
    assert drawn(again, "batches.list", 20) == drawn(script, "batches.list", 20)


def test_an_id_is_never_given_twice() -> None:
    script = Script.read({"faults": ["stalls", "stalls"]})
    script.remove("fault-2")

    assert script.add("stalls").id == "fault-3"
    with pytest.raises(FaultMistake, match="fault-1"):
        script.add({"name": "stalls", "id": "fault-1"})


@pytest.mark.parametrize("asked", ["7", "x:0.1", "7:2", {"seed": 1}, {"seed": 1, "rate": 0.1, "names": ["x"]}, 7])
def test_a_storm_that_cannot_be_is_refused(asked: object) -> None:
    with pytest.raises(FaultMistake):
        read_storm(asked)


def test_every_known_failure_can_be_played_or_is_the_clients_own() -> None:
    played = {number for kind in KINDS.values() for number in kind.plays}

    assert played.isdisjoint(FOR_THE_CLIENT)
    assert played | FOR_THE_CLIENT == set(KNOWN_FAILURES)


def test_each_kind_strikes_somewhere_that_there_is() -> None:
    assert all(kind.operations and set(kind.operations) <= set(OPERATIONS) for kind in KINDS.values())
