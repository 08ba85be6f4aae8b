"""What somebody with grpcurl or `buf curl` and no stub finds: everything, by reflection, from both running services."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from sandbox import keys
from sandbox.openai_twin.batch_worker import Pace
from sandbox.stack import Stack
from tests.acceptance.money import audit
from tests.acceptance.stacks import ROOT, SAMPLES, stack_in

SCRIPTS = Path(sysconfig.get_path("scripts"))
WALLET = "punchcard.wallet.v1.WalletService"
EARNING = "punchcard.wallet.v1.EarningService"
BATCHER = "punchcard.batcher.v1.BatcherService"
IMAGE_ID = hashlib.sha256((SAMPLES / "cat.webp").read_bytes()).hexdigest()
EVERY_SCOPE = (
    f"{keys.USER_SCOPES} wallet.grant wallet.reserve wallet.settle wallet.earn wallet.admin job.admin price.admin"
    " act_for:*"
)
TIMEOUT_SECONDS = 60
# What grpcurl adds to a status code to make its exit code; buf curl shifts it by three bits instead.
GRPCURL_EXIT = 64


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as one JSON value."""
        (only,) = self.messages
        return only

    @property
    def messages(self) -> list[Any]:
        """What it printed, as JSON values one after the other, all names as in the proto.

        Reflection from Python carries no JSON names: grpcurl then prints the proto's, buf makes them up.
        """
        decoder, text, found = json.JSONDecoder(object_pairs_hook=_as_in_proto), self.out.strip(), []
        while text:
            value, end = decoder.raw_decode(text)
            found.append(value)
            text = text[end:].lstrip()
        return found


def _as_in_proto(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {re.sub(r"[A-Z]", lambda capital: f"_{capital[0].lower()}", name): value for name, value in pairs}


class Shell:
    """Runs commands beside a stack, as a person would at a prompt."""

    def __init__(self, stack: Stack, home: Path) -> None:
        self.stack = stack
        self.addresses = {WALLET: stack.wallet_address, EARNING: stack.wallet_address, BATCHER: stack.batcher_address}
        self._environment = {
            **os.environ,
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "IMAGE_ID": IMAGE_ID,
        }

    def token(self, subject: str = "alice", scopes: str = EVERY_SCOPE, ttl_seconds: int = 600) -> str:
        """A token for both services."""
        return self.stack.keys.sign(subject, [keys.WALLET, keys.BATCHER], scopes, ttl_seconds)

    def run(self, command: list[str], stdin: str = "", **environment: str) -> Done:
        """Runs a command to its end."""
        done = subprocess.run(
            command,
            input=stdin,
            cwd=SAMPLES,
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def grpcurl(self, service: str, *arguments: str, method: str = "", stdin: str = "", token: str = "") -> Done:
        """`grpcurl -plaintext <arguments> <address of the service> <method>`."""
        header = ["-H", f"authorization: Bearer {token}"] if token else []
        words = method.split() if " " in method else [f"{service}/{method}"] if method else []
        return self.run(["grpcurl", "-plaintext", *header, *arguments, self.addresses[service], *words], stdin)

    def buf_curl(self, service: str, *arguments: str, method: str = "", token: str = "") -> Done:
        """`buf curl` of a method of a service, or of its address alone."""
        header = ["-H", f"authorization: Bearer {token}"] if token else []
        url = f"http://{self.addresses[service]}" + (f"/{service}/{method}" if method else "")
        return self.run(["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", *header, *arguments, url])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A prompt beside a stack whose photographs take a while, so that a job can be caught on its way."""
    pace = Pace(image_seconds=1.0)
    # An instant call never takes so little time: such a job dies, as the story of dead jobs needs one.
    impatient = {"BATCHER_INSTANT_TIMEOUT_SECONDS": "0.2"}
    with stack_in(tmp_path_factory.mktemp("stack"), pace=pace, settings=impatient) as stack:
        yield Shell(stack, tmp_path_factory.mktemp("home"))


SERVICES = pytest.mark.parametrize("service", [WALLET, BATCHER])
METHODS = {WALLET: ("Reserve", "ReserveRequest"), BATCHER: ("WatchJob", "WatchJobRequest")}


@SERVICES
def test_grpcurl_lists_and_describes_services_methods_and_messages(shell, service):
    """Without a token and without a proto file, as reflection and health are public."""
    method, message = METHODS[service]
    package = service.rpartition(".")[0]

    services = shell.grpcurl(service, method="list ").out.split()
    methods = shell.grpcurl(service, method=f"list {service}").out.split()
    of_service = shell.grpcurl(service, method=f"describe {service}")
    of_method = shell.grpcurl(service, method=f"describe {service}.{method}")
    of_message = shell.grpcurl(service, method=f"describe {package}.{message}")
    of_reasons = shell.grpcurl(service, method=f"describe {package}.ErrorReason")

    assert {service, "grpc.health.v1.Health"} <= set(services)
    assert f"{service}.{method}" in methods
    assert all(f"rpc {name.rpartition('.')[2]} (" in of_service.out for name in methods)
    assert f"rpc {method} ( .{package}.{message} )" in of_method.out
    assert "string account_id = 1;" in of_message.out
    assert "ERROR_REASON_TOKEN_MISSING = 1;" in of_reasons.out
    assert {done.code for done in (of_service, of_method, of_message, of_reasons)} == {0}


@SERVICES
def test_the_protoset_in_the_repository_describes_with_comments(shell, service):
    """Reflection carries no comments; gen/punchcard.protoset does."""
    protoset = str(ROOT / "gen" / "punchcard.protoset")

    done = shell.run(["grpcurl", "-protoset", protoset, "describe", service])

    assert done.code == 0
    assert "Retry: safe" in done.out
    assert "grpcurl -plaintext" in done.out


@SERVICES
def test_grpcurl_reads_the_health_of_each_service(shell, service):
    done = shell.grpcurl(service, "-d", json.dumps({"service": service}), method="grpc.health.v1.Health/Check ")

    assert (done.code, done.json) == (0, {"status": "SERVING"})


@SERVICES
def test_buf_curl_lists_the_methods(shell, service):
    done = shell.buf_curl(service, "--list-methods")

    assert done.code == 0
    assert f"{service}/{METHODS[service][0]}" in done.out.split()


def test_grpcurl_makes_unary_calls_that_read_as_json(shell):
    """Amounts are strings, as JSON numbers end at 2^53; names may be given in both spellings."""
    token = shell.token("unary")

    opened = shell.grpcurl(WALLET, "-d", '{"account_id": "unary"}', method="OpenAccount", token=token)
    read = shell.grpcurl(WALLET, "-d", '{"accountId": "unary"}', "-emit-defaults", method="GetAccount", token=token)

    assert (opened.code, read.code) == (0, 0)
    assert opened.json["account"]["tokens"] == {"balance": "10", "available": "10"}
    assert read.json["account"]["tokens"] == {"balance": "10", "held": "0", "available": "10", "scale": 0}


def test_buf_curl_makes_a_unary_call(shell):
    done = shell.buf_curl(WALLET, "-d", '{"account_id": "buf"}', method="OpenAccount", token=shell.token("buf"))

    assert (done.code, done.json["account"]["account_id"]) == (0, "buf")


@pytest.mark.parametrize("tool", ["grpcurl", "buf_curl"])
async def test_an_image_is_uploaded_through_stdin_and_its_job_watched_to_the_end(shell, tool):
    """Client streaming and server streaming, at a prompt; the stream ends with OK and the tool with 0."""
    account_id = tool.replace("_", "-")
    token = shell.token(account_id)
    photograph = (SAMPLES / "cat.webp").read_bytes()
    half = len(photograph) // 2
    messages = [
        {"spec": {"account_id": account_id, "sha256": IMAGE_ID, "size_bytes": len(photograph)}},
        {"chunk": {"data": base64.b64encode(photograph[:half]).decode()}},
        {"chunk": {"data": base64.b64encode(photograph[half:]).decode(), "offset": half}},
    ]
    job = {"account_id": account_id, "job_id": "cat-1"}
    order = {**job, "images": [{"image_id": IMAGE_ID}], "prompt": "What is this?", "lane": "LANE_BATCH"}

    upload = shell.grpcurl(
        BATCHER, "-d", "@", method="UploadImage", token=token, stdin="\n".join(map(json.dumps, messages))
    )
    submit = getattr(shell, tool)(BATCHER, "-d", json.dumps(order), method="SubmitJob", token=token)
    watch = getattr(shell, tool)(BATCHER, "-d", json.dumps(job), method="WatchJob", token=token)

    assert (upload.code, upload.json["image"]["image_id"]) == (0, IMAGE_ID)
    assert upload.json["image"]["media_type"] == "image/webp"
    assert (submit.code, submit.json["job"]["job_id"]) == (0, "cat-1"), submit
    assert watch.code == 0
    assert next(iter(watch.messages[0])) == "snapshot"
    assert "451 x 300" in next(m["change"]["answer"]["text"] for m in watch.messages if "answer" in m.get("change", {}))
    assert watch.messages[-1]["change"]["settlement"] == {"state": "SETTLEMENT_STATE_SETTLED", "charged": "1"}
    assert all(message["resume_token"] for message in watch.messages)
    await audit(shell.stack)


ERRORS = [
    (
        "a refusal of money",
        WALLET,
        "Reserve",
        {"account_id": "alice", "reservation_id": "too-much", "amount": "1000000", "hold_duration": "60s"},
        grpc.StatusCode.FAILED_PRECONDITION,
        "INSUFFICIENT_FUNDS",
    ),
    (
        "a bad field",
        WALLET,
        "GetAccount",
        {"account_id": "a b"},
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    ),
    (
        "what is not there",
        BATCHER,
        "GetJob",
        {"account_id": "alice", "job_id": "nothing"},
        grpc.StatusCode.NOT_FOUND,
        "JOB_NOT_FOUND",
    ),
]


@pytest.mark.parametrize(("service", "method", "request_json", "code", "reason"), [row[1:] for row in ERRORS])
def test_an_error_is_readable_and_its_exit_code_tells_the_status(shell, service, method, request_json, code, reason):
    """Both tools fail with the status in their exit code; grpcurl prints the details decoded."""
    request = json.dumps(request_json)

    plain = shell.grpcurl(service, "-d", request, method=method, token=shell.token())
    formatted = shell.grpcurl(service, "-format-error", "-d", request, method=method, token=shell.token())
    by_buf = shell.buf_curl(service, "-d", request, method=method, token=shell.token())

    assert plain.code == formatted.code == GRPCURL_EXIT + code.value[0]
    assert by_buf.code == code.value[0] << 3
    domain = f"{service.split('.')[1]}.punchcard"
    assert all(
        f'"{key}":"{value}"' in plain.err.replace('": "', '":"')
        for key, value in {"reason": reason, "domain": domain}.items()
    ), plain.err
    details = json.loads(formatted.err)["details"]
    assert details[0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (details[0]["reason"], details[0]["domain"]) == (reason, domain)
    if reason == "INVALID_FIELD":
        assert details[1]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
        assert details[1]["field_violations"][0]["field"] == "account_id"


@SERVICES
def test_a_call_without_a_token_says_so(shell, service):
    done = shell.grpcurl(
        service, "-d", '{"account_id": "alice"}', method="GetAccount" if service == WALLET else "GetJob"
    )

    assert done.code == GRPCURL_EXIT + grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert "TOKEN_MISSING" in done.err


# The order in which the comments' examples can be followed: a hold is amended before it is taken.
STORY = [
    "OpenAccount", "Grant", "PreviewReserve", "Reserve", "Amend", "Commit", "Refund", "BatchReserve",
    "ListReservations", "BatchSettle", "GetAccount", "GetReservation", "ListTransactions", "FreezeAccount",
    "UnfreezeAccount", "UploadImage", "QuoteJob", "PutPriceList", "RollOutPriceList", "WithdrawPriceList",
    "ListPriceLists", "SubmitJob", "SubmitJobs", "GetJob", "ListJobs", "CancelJob", "WatchJob",
    "ListDeadJobs", "RetryJob", "GetBalanceAt", "WatchBalance", "ClaimDailyBonus", "RecordActivity", "ConvertPoints",
    "GrantAchievement", "GetEarnings", "PutEarningRules", "ListEarningRules", "Give",
    "CreateOffer", "ListOffers", "TakeOffer", "GetOffer", "CancelOffer", "RevokeGrant", "CloseAccount",
    "ListDaySummaries", "OpenTeam", "SetMember", "GetTeam", "ListMembers", "GetSpending", "RemoveMember",
    "SetSpendingLimits", "GetSpendingLimits", "VerifyLedger",
]  # fmt: skip
ENDLESS = {"WatchBalance"}
"""Commands that run until their own time limit ends them."""


def examples() -> dict[str, str]:
    """The command in each method's comment, by the method."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "proto").rglob("*.proto")):
        for line in re.findall(r"^ +//   (.*grpcurl .*)$", path.read_text(), re.MULTILINE):
            found[line.rpartition("/")[2]] = line
    return found


async def a_job_dies(shell: Shell) -> None:
    """Alice's cat-0 is an instant job that the provider is too slow for, twice."""
    job = {"account_id": "alice", "job_id": "cat-0"}
    order = {**job, "images": [{"image_id": IMAGE_ID}], "prompt": "What is this?", "lane": "LANE_INSTANT"}
    assert shell.grpcurl(BATCHER, "-d", json.dumps(order), method="SubmitJob", token=shell.token()).code == 0
    watch = shell.grpcurl(BATCHER, "-d", json.dumps(job), method="WatchJob", token=shell.token())
    assert "JOB_STATE_FAILED" in watch.out, watch


async def test_each_command_in_the_protos_comments_works_as_it_stands(shell):
    """Followed from the first to the last by alice, with nothing changed but the ports."""
    commands = examples()
    assert sorted(commands) == sorted(STORY)
    carol = shell.grpcurl(WALLET, "-d", '{"account_id": "carol"}', method="OpenAccount", token=shell.token())
    assert carol.code == 0
    won = '{"account_id": "carol", "achievement": "profile_complete"}'
    earned = shell.grpcurl(EARNING, "-d", won, method="GrantAchievement", token=shell.token())
    assert earned.code == 0

    for method in STORY:
        if method == "ListDeadJobs":
            await a_job_dies(shell)
        line = commands[method]
        line = line.replace("localhost:50051", shell.addresses[WALLET])
        line = line.replace("localhost:50052", shell.addresses[BATCHER])
        done = shell.run(["bash", "-euo", "pipefail", "-c", line], TOKEN=shell.token())
        if method in ENDLESS:
            assert done.code == GRPCURL_EXIT + grpc.StatusCode.DEADLINE_EXCEEDED.value[0], done
        else:
            assert (done.code, done.err) == (0, ""), (line, done)
        assert done.messages, line

    watch = shell.grpcurl(
        BATCHER, "-d", '{"account_id": "alice", "job_id": "cat-2"}', method="WatchJob", token=shell.token()
    )
    assert watch.code == 0
    await audit(shell.stack)
