"""Looks for ways to make tokens from nothing, and shows what a year of the economy's rules comes to.

The real rules decide: `services.wallet.ledger` with all that it decides, and the batcher's `price_change`, `pricing`
and `job`. Whether they kept what they declare is judged by the `*promises`, which read the journal and what customers
were told, and were written from the declarations.
"""
