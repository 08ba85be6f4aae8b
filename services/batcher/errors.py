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


class PriceListMismatch(IdempotencyMismatch):
    """The version was used before for another price list; the first field that differs is named."""

    def __init__(self, version: str, field: str, stored: object, received: object) -> None:
        BatcherError.__init__(
            self,
            f"The price list {version!r} was put before with another {field}.",
            field=field,
            stored=str(stored)[:TEXT_CHARS_MAX],
            received=str(received)[:TEXT_CHARS_MAX],
        )


class PriceListNotFound(BatcherError):
    """No such price list."""

    def __init__(self, version: str) -> None:
        super().__init__(f"There is no price list {version!r}.", version=version)


class PriceListInForce(BatcherError):
    """The price list is in force, or was: jobs may have been priced by it, so that it can't be withdrawn."""

    def __init__(self, version: str, effective_time: str) -> None:
        super().__init__(
            f"The price list {version!r} is in force since {effective_time}: put another one instead.",
            version=version,
            effective_time=effective_time,
        )


class PriceListWithdrawn(BatcherError):
    """The price list was withdrawn, so that it reaches nobody."""

    def __init__(self, version: str) -> None:
        super().__init__(f"The price list {version!r} was withdrawn: put another one instead.", version=version)


class RolloutShrinks(BatcherError):
    """A roll-out only grows: who has seen a price keeps it until there is another list."""

    def __init__(self, version: str, percent: int, current_percent: int) -> None:
        super().__init__(
            f"The price list {version!r} is rolled out to {current_percent} percent: {percent} would be fewer.",
            version=version,
            percent=percent,
            current_percent=current_percent,
        )


class TooManyPriceLists(BatcherError):
    """So many price lists are in force or to come that another one would be one too many."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"There are {limit} price lists in force or to come: roll one out to 100 percent, or withdraw one.",
            limit=limit,
        )


class PriceChanged(BatcherError):
    """The job would cost more than its max_price, or be priced by another list than its price_version."""

    def __init__(self, price: int, version: str, max_price: int | None, expected_version: str) -> None:
        asked: dict[str, object] = {} if max_price is None else {"max_price": max_price}
        if expected_version:
            asked["expected_version"] = expected_version
        super().__init__(
            f"The job costs {price} by the price list {version!r}: get a quote and submit again. Nothing was reserved.",
            price=price,
            price_version=version,
            **asked,
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
    """The wallet refused the job for another reason than funds. numbers: the wallet's metadata of that reason."""

    def __init__(self, account_id: str, wallet_reason: str, wallet_message: str, **numbers: object) -> None:
        super().__init__(
            f"The wallet refused the job: {wallet_message} ({wallet_reason}).",
            **{**numbers, "account_id": account_id, "wallet_reason": wallet_reason},
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


class NoPriceInForce(Exception):
    """No price list is in force. The service does not start without one, so that this is a mistake of ours."""
