"""What the batcher refuses, one class per reason. The edge maps each to a status and to an `ErrorReason` of the proto.

`str(error)` is the sentence for people, `error.metadata` holds the facts for programs, all as strings.
"""

TEXT_CHARS_MAX = 64


class BatcherError(Exception):
    """The base of all that the batcher refuses. metadata: the facts, for programs."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = {name: str(value) for name, value in metadata.items()}


class AccountNotFound(BatcherError):
    """No such account, or the caller may not act for it: the two look alike on purpose."""

    def __init__(self, account_id: str) -> None:
        super().__init__(f"There is no account {account_id!r}.", account_id=account_id)


class JobNotFound(BatcherError):
    """No such job, or it is another account's."""

    def __init__(self, account_id: str, job_id: str) -> None:
        super().__init__(f"There is no job {job_id!r}.", account_id=account_id, job_id=job_id)


class ImageNotFound(BatcherError):
    """The account has uploaded no such image."""

    def __init__(self, account_id: str, image_id: str) -> None:
        super().__init__(f"There is no image {image_id!r}.", account_id=account_id, image_id=image_id)


class ImageUnreadable(BatcherError):
    """The bytes are not an image of a kind that we take, or break off. `problem` is a few words, `formats` a list."""

    def __init__(self, problem: str, formats: str = "JPEG, PNG, WEBP, GIF") -> None:
        super().__init__(f"The image can't be read: {problem}.", problem=problem, formats=formats)


class ImageTooLarge(BatcherError):
    """The image has more bytes or pixels than we take. metadata: size_bytes, limit_bytes or pixels, limit_pixels."""

    def __init__(self, **numbers: int) -> None:
        said = ", ".join(f"{name} {value}" for name, value in numbers.items())
        super().__init__(f"The image is too large: {said}.", **numbers)


class ChecksumMismatch(BatcherError):
    """The bytes received are not those announced."""

    def __init__(self, expected_sha256: str, received_sha256: str) -> None:
        super().__init__(
            "The bytes received are not those announced.",
            expected_sha256=expected_sha256,
            received_sha256=received_sha256,
        )


class IdempotencyMismatch(BatcherError):
    """The job_id was used before with other content; the first field that differs is named, its values are cut."""

    def __init__(self, job_id: str, field: str, stored: object, received: object) -> None:
        super().__init__(
            f"The job {job_id!r} was submitted before with another {field}.",
            field=field,
            stored=str(stored)[:TEXT_CHARS_MAX],
            received=str(received)[:TEXT_CHARS_MAX],
        )


class InsufficientFunds(BatcherError):
    """The wallet refused the tokens. metadata: account_id, requested, available, held (as the wallet gave them)."""

    def __init__(self, account_id: str, **numbers: object) -> None:
        super().__init__(
            f"The account {account_id!r} does not have the tokens for this job; top up and submit it again.",
            account_id=account_id,
            **numbers,
        )


class WalletRefused(BatcherError):
    """The wallet refused the job for another reason than funds."""

    def __init__(self, account_id: str, wallet_reason: str) -> None:
        super().__init__(
            f"The wallet refused the job: {wallet_reason}.", account_id=account_id, wallet_reason=wallet_reason
        )


class JobNotDead(BatcherError):
    """The job neither FAILED nor EXPIRED, so that there is nothing to retry."""

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(
            f"The job {job_id!r} is {state}: only a job that FAILED or EXPIRED can be retried.",
            job_id=job_id,
            state=state,
        )


class JobEnded(BatcherError):
    """The job has ended, so that it can't be cancelled."""

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(f"The job {job_id!r} has ended: it is {state}.", job_id=job_id, state=state)
