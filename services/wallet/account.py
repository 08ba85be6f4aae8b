"""Decisions about accounts: opening, freezing and closing one."""

from services.wallet.commands import ChangeAccount, Moment, OpenAccount, Outcome
from services.wallet.economy import WELCOME_GRANT_ID, in_force
from services.wallet.errors import (
    AccountClosed,
    AccountFrozen,
    AccountNotEmpty,
    AccountNotFound,
    BalanceLimit,
    IdempotencyMismatch,
)
from services.wallet.holdings import ISSUE, LAPSED, TOKEN, WALLET, Account, AccountState, Entry, State
from services.wallet.journal_entry import apply, entry_on

BALANCE_MAX = 10**18
"""Nothing new lifts a balance past this; only what an account has offered comes back to it in any case."""


def open_account(state: State, command: OpenAccount, moment: Moment) -> Outcome:
    """Opens the account, or finds it open."""
    key = (command.account_id, TOKEN)
    account = state.accounts.get(key)
    if account is None:
        open_at(state, command.actor, command.account_id, moment)
    else:
        refuse_closed(account)
    return Outcome(state.accounts[key], None, account is not None)


def open_at(state: State, actor: str, account_id: str, moment: Moment) -> None:
    """Begins an account with its welcome bonus; the caller has seen that there is none."""
    now_us, bonus = moment.now_us, welcome_bonus(state, account_id, moment)
    apply(state, Entry("open", actor, account_id, created_by=actor), now_us)
    if bonus:
        # The key names the account: the bonus is the wallet's own grant, and there is one wallet for all accounts.
        entry = entry_on(
            state.accounts[account_id, TOKEN],
            "grant",
            WALLET,
            balance_change=bonus,
            counterparty=ISSUE,
            created_by=WALLET,
            key=welcome_key(account_id),
            facts={"reference": WELCOME_GRANT_ID},
        )
        apply(state, entry, now_us)


def welcome_key(account_id: str) -> str:
    """The key of an account's welcome bonus among the grants of the wallet itself."""
    return f"{WELCOME_GRANT_ID}:{account_id}"


def welcome_bonus(state: State, account_id: str, moment: Moment) -> int:
    """What an account is given when it begins."""
    return in_force(moment.rules, state.rule_sets.values(), account_id, moment.now_us).rules.welcome_bonus


def change_account(state: State, command: ChangeAccount, moment: Moment) -> Outcome:
    """Freezes, unfreezes or closes an account."""
    done = state.changes.get((command.actor, command.change_id))
    if done is not None:
        same("account_id", done.account_id, command.account_id)
        same("change_id", f"{done.kind} {command.change_id}", f"{command.kind} {command.change_id}")
        same("forfeit_balance", bool(done.forfeit), command.forfeit)
        same("reference", done.reference, command.reference)
        return Outcome(find(state, command.account_id), None, True)
    account = find(state, command.account_id)
    refuse_closed(account)
    facts: dict[str, object] = {"reference": command.reference} if command.reference else {}
    taken = 0
    if command.kind == "close":
        offered = sum(each.left for each in state.market.open_offers(account.account_id))
        if account.held or offered or (account.balance and not command.forfeit):
            raise AccountNotEmpty(account.account_id, account.balance, account.held, offered)
        taken = account.balance
        if command.forfeit:
            facts["forfeit"] = 1
        if account.lots:
            lots = state.lots[account.account_id].values()
            facts["lots"] = [[lot.lot_id, -lot.remaining, 0] for lot in lots if lot.remaining]
    entry = entry_on(
        account,
        command.kind,
        command.actor,
        balance_change=-taken,
        counterparty=LAPSED if taken else "",
        created_by=command.actor,
        key=command.change_id,
        facts=facts,
    )
    apply(state, entry, moment.now_us)
    return Outcome(state.accounts[account.account_id, TOKEN], None, False)


def find(state: State, account_id: str) -> Account:
    """The account, or a refusal where there is none."""
    account = state.accounts.get((account_id, TOKEN))
    if account is None:
        raise AccountNotFound(account_id)
    return account


def refuse_closed(account: Account) -> None:
    """Refuses what can't be done with an account that is over."""
    if account.state == AccountState.CLOSED:
        raise AccountClosed(account.account_id)


def refuse_unusable(account: Account) -> None:
    """Refuses what takes available tokens from an account that is closed or frozen."""
    refuse_closed(account)
    if account.state == AccountState.FROZEN:
        raise AccountFrozen(account.account_id)


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
