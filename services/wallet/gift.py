"""Decisions about gifts: tokens that one account gives to another. Pure.

    giver ── give ──► @transfer ── receive ──► receiver        two rows, one transaction

Only tokens without a life of their own can be given, so many a day. While an account is young it gives nothing that it
needs to still have its welcome bonus: otherwise new accounts would be opened to be milked.
"""

from typing import Any, Final

from services.wallet.account import check_balance_limit, find, refuse_closed, refuse_unusable, same, welcome_key
from services.wallet.commands import Moment, Outcome
from services.wallet.counter import refuse_over
from services.wallet.economy import EarningRules, in_force
from services.wallet.errors import AccountNotFound, InsufficientFunds
from services.wallet.holdings import TOKEN, WALLET, Account, State
from services.wallet.journal_entry import apply, entry_on
from services.wallet.lot import free_plain
from services.wallet.sharing import Gift
from services.wallet.sharing_commands import Give
from services.wallet.sharing_errors import WelcomeLocked

TRANSFER: Final = "@transfer"
"""What accounts move to each other passes through it: after each transaction it has what it had before."""
COUNTER: Final = "gift"
"""The counter of tokens that were given away in a day."""
DAY_US: Final = 24 * 3600 * 1_000_000


def give(state: State, command: Give, moment: Moment) -> Outcome:
    """Moves tokens from one account to another, once."""
    made = state.shared.gifts.get((command.actor, command.gift_id))
    if made is not None:
        same("account_id", made.account_id, command.account_id)
        same("receiver_account_id", made.receiver_id, command.receiver_id)
        same("amount", made.amount, command.amount)
        same("reference", made.reference, command.reference)
        return _outcome(state, made, replayed=True)
    if command.account_id == command.receiver_id:
        # Both rows would begin from one balance. The edge refuses it as bad input; nobody else may bring it about.
        raise AccountNotFound(command.receiver_id)
    giver, receiver = find(state, command.account_id), find(state, command.receiver_id)
    refuse_closed(giver)
    refuse_closed(receiver)
    refuse_unusable(giver)
    rules = in_force(moment.rules, state.rule_sets.values(), giver.account_id, moment.now_us).rules
    limit = rules.gifts_per_day
    refuse_over(state, giver.account_id, COUNTER, moment.day, command.amount, limit, moment.next_day_us)
    refuse_more_than_free(state, giver, command.amount, rules, moment)
    check_balance_limit(receiver, command.amount)
    facts: dict[str, Any] = {"peer": receiver.account_id, "counts": [[COUNTER, moment.day, command.amount]]}
    if command.reference:
        facts["reference"] = command.reference
    for holder, kind, change, of_row in (
        (giver, "give", -command.amount, facts),
        (receiver, "receive", command.amount, {"peer": giver.account_id}),
    ):
        entry = entry_on(
            holder,
            kind,
            command.actor,
            balance_change=change,
            counterparty=TRANSFER,
            created_by=command.actor,
            key=command.gift_id,
            facts=of_row,
        )
        apply(state, entry, moment.now_us)
    return _outcome(state, state.shared.gifts[command.actor, command.gift_id], replayed=False)


def refuse_more_than_free(state: State, giver: Account, amount: int, rules: EarningRules, moment: Moment) -> None:
    """Refuses what is held, what has a life of its own, and what a young account was welcomed with."""
    free = free_plain(state, giver)
    if amount > free:
        raise InsufficientFunds(giver.account_id, amount, free, giver.held)
    unlock_us = giver.create_time_us + rules.welcome_lock_days * DAY_US
    welcome = state.grants.get((WALLET, welcome_key(giver.account_id)))
    locked = welcome.amount if welcome is not None and moment.now_us < unlock_us else 0
    if amount > free - locked:
        raise WelcomeLocked(giver.account_id, amount, max(free - locked, 0), locked, unlock_us)


def _outcome(state: State, gift: Gift, *, replayed: bool) -> Outcome:
    return Outcome(state.accounts[gift.account_id, TOKEN], None, replayed, gift=gift)
