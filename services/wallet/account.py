"""Decisions about accounts: opening one, and granting it tokens."""

from services.wallet.commands import Grant, Moment, OpenAccount, Outcome
from services.wallet.economy import WELCOME_GRANT_ID
from services.wallet.errors import AccountNotFound, BalanceLimit, IdempotencyMismatch
from services.wallet.journal_entry import ISSUE, TOKEN, WALLET, Account, Entry, State, apply, entry_on

BALANCE_MAX = 10**18
"""No balance grows past this."""
ISSUED_MAX = 9 * 10**18
"""Nor do all grants together grow past this, just below the end of int64, where @issue's balance has to fit too."""


def open_account(state: State, command: OpenAccount, moment: Moment) -> Outcome:
    """Opens the account, or finds it open."""
    key = (command.account_id, TOKEN)
    replayed = key in state.accounts
    if not replayed:
        open_at(state, command.actor, command.account_id, moment)
    return Outcome(state.accounts[key], None, replayed)


def open_at(state: State, actor: str, account_id: str, moment: Moment) -> None:
    """Begins an account with its welcome bonus; the caller has seen that there is none."""
    now_us, bonus = moment.now_us, moment.rules.welcome_bonus
    apply(state, Entry("open", actor, account_id, created_by=actor), now_us)
    if bonus:
        opened = state.accounts[account_id, TOKEN]
        # The key names the account: the bonus is the wallet's own grant, and there is one wallet for all accounts.
        key = f"{WELCOME_GRANT_ID}:{account_id}"
        facts = {"reference": WELCOME_GRANT_ID}
        apply(state, _grant_of(opened, bonus, WALLET, key, facts), now_us)


def grant(state: State, command: Grant, moment: Moment) -> Outcome:
    """Gives new tokens to an account that is open."""
    key = (command.account_id, TOKEN)
    made = state.grants.get((command.actor, command.grant_id))
    if made is not None:
        same("account_id", made.account_id, command.account_id)
        same("amount", made.amount, command.amount)
        same("reference", made.reference, command.reference)
        return Outcome(state.accounts[key], None, True)
    account = state.accounts.get(key)
    if account is None:
        raise AccountNotFound(command.account_id)
    check_balance_limit(account, command.amount)
    issued = state.issued - state.system.get((ISSUE, TOKEN), 0)
    if issued + command.amount > ISSUED_MAX:
        raise BalanceLimit(ISSUE, command.amount, issued, ISSUED_MAX)
    facts = {"reference": command.reference} if command.reference else {}
    apply(state, _grant_of(account, command.amount, command.actor, command.grant_id, facts), moment.now_us)
    return Outcome(state.accounts[key], None, False)


def _grant_of(account: Account, amount: int, actor: str, key: str, facts: dict[str, str]) -> Entry:
    return entry_on(
        account, "grant", actor, balance_change=amount, counterparty=ISSUE, created_by=actor, key=key, facts=facts
    )


def check_balance_limit(account: Account, amount: int) -> None:
    """Refuses what would lift a balance past its largest."""
    if account.balance + amount > BALANCE_MAX:
        raise BalanceLimit(account.account_id, amount, account.balance, BALANCE_MAX)


def same(field: str, stored: object, received: object) -> None:
    """Refuses a repeat whose field differs from what was stored."""
    if stored != received:
        raise IdempotencyMismatch(field, stored, received)


def same_duration(field: str, stored_us: int | None, received_us: int | None) -> None:
    """Refuses a repeat whose duration differs, and says both in seconds."""
    if stored_us != received_us:
        raise IdempotencyMismatch(field, _seconds(stored_us), _seconds(received_us))


def _seconds(duration_us: int | None) -> str | None:
    return None if duration_us is None else f"{duration_us / 1_000_000}s"
