"""What is declared of accounts that are frozen or over, with one rule left out."""

from collections.abc import Mapping
from typing import Final

from sandbox.prover.hole import Hole, both, decided, replaced
from services.wallet import account, gift, hold, offer, reservation
from services.wallet.account import refuse_closed
from services.wallet.commands import Moment, OpenAccount, Outcome
from services.wallet.holdings import TOKEN, AccountState, State


def _opens_again(state: State, command: OpenAccount, moment: Moment) -> Outcome:
    """As if an account that is over had never been."""
    found = state.accounts.get((command.account_id, TOKEN))
    if found is not None and found.state == AccountState.CLOSED:
        del state.accounts[command.account_id, TOKEN]
    return account.open_account(state, command, moment)


ACCOUNT_HOLES: Final[Mapping[str, Hole]] = {
    "reopened": Hole("an account that is over can be opened again", decided(OpenAccount, _opens_again)),
    "frozen": Hole(
        "a frozen account holds, gives and offers on",
        both(
            replaced(hold, "refuse_unusable", refuse_closed),
            both(replaced(gift, "refuse_unusable", refuse_closed), replaced(offer, "refuse_unusable", refuse_closed)),
        ),
    ),
    "revived": Hole(
        "an account that is over can be given to, and gets refunds",
        both(replaced(gift, "refuse_closed", lambda *_: None), replaced(reservation, "refuse_closed", lambda *_: None)),
    ),
}
