"""Decisions about grants: giving new tokens, with a life of their own or without, and taking them back."""

from typing import Any

from services.wallet.account import check_balance_limit, find, refuse_closed, same, same_duration
from services.wallet.commands import Grant, Moment, Outcome, Revoke
from services.wallet.errors import BalanceLimit, GrantNotFound, LotLimit
from services.wallet.holdings import ISSUE, TOKEN, Account, GrantRecord, Lot, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.lot import LOTS_MAX, free_plain

ISSUED_MAX = 9 * 10**18
"""All grants together grow no further, just below the end of int64, where @issue's balance has to fit too."""


def grant(state: State, command: Grant, moment: Moment) -> Outcome:
    """Gives new tokens to an account that is open."""
    made = state.grants.get((command.actor, command.grant_id))
    if made is not None:
        _compare(made, command)
        return Outcome(find(state, command.account_id), None, True)
    account = find(state, command.account_id)
    refuse_closed(account)
    has_lot = command.lifetime_us is not None or command.priority is not None
    if has_lot and account.lots >= LOTS_MAX:
        raise LotLimit(account.account_id, LOTS_MAX)
    check_issue(state, account, command.amount)
    entry = entry_on(
        account,
        "grant",
        command.actor,
        balance_change=command.amount,
        counterparty=ISSUE,
        created_by=command.actor,
        key=command.grant_id,
        facts=_facts(command, moment.now_us),
    )
    apply(state, entry, moment.now_us)
    return Outcome(state.accounts[command.account_id, TOKEN], None, False)


def check_issue(state: State, account: Account, amount: int) -> None:
    """Refuses new tokens that would pass the largest balance, or the largest sum of all that was ever issued."""
    check_balance_limit(account, amount)
    issued = state.issued - state.system.get((ISSUE, TOKEN), 0)
    if issued + amount > ISSUED_MAX:
        raise BalanceLimit(ISSUE, amount, issued, ISSUED_MAX)


def _compare(made: GrantRecord, command: Grant) -> None:
    same("account_id", made.account_id, command.account_id)
    same("amount", made.amount, command.amount)
    same("reference", made.reference, command.reference)
    same_duration("lifetime", made.lifetime_us, command.lifetime_us)
    same("priority", made.priority, command.priority)


def _facts(command: Grant, now_us: int) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if command.reference:
        facts["reference"] = command.reference
    if command.lifetime_us is not None:
        facts |= {"lifetime_us": command.lifetime_us, "expire_time_us": now_us + command.lifetime_us}
    if command.priority is not None:
        facts["priority"] = command.priority
    return facts


def revoke(state: State, command: Revoke, moment: Moment) -> Outcome:
    """Takes back what is left of a grant, once."""
    account = find(state, command.account_id)
    made = state.grants.get((command.created_by, command.grant_id))
    if made is None or made.account_id != command.account_id:
        raise GrantNotFound(command.grant_id)
    if made.revoked is not None:
        return Outcome(account, None, True, revoked=made.revoked)
    facts: dict[str, Any] = {"reference": command.reference} if command.reference else {}
    if made.made_a_lot:
        lots = _lots_of(state, made)
        amount = sum(lot.free for lot in lots)
        facts["ended"] = [lot.lot_id for lot in lots]
        facts["lots"] = [[lot.lot_id, -lot.free, 0] for lot in lots if lot.free]
    else:
        amount = min(made.amount, free_plain(state, account))
    entry = entry_on(
        account,
        "revoke",
        command.actor,
        balance_change=-amount,
        counterparty=ISSUE if amount else "",
        created_by=command.created_by,
        key=command.grant_id,
        facts=facts,
    )
    apply(state, entry, moment.now_us)
    return Outcome(state.accounts[account.account_id, TOKEN], None, False, revoked=amount)


def _lots_of(state: State, made: GrantRecord) -> list[Lot]:
    """The grant's lot, and those of grace that came from it, whether or not they have tokens left."""
    lots = state.lots.get(made.account_id, {}).values()
    return [lot for lot in lots if (lot.created_by, lot.grant_id) == (made.created_by, made.grant_id)]
