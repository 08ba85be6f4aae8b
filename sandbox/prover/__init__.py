"""Looks for ways to make tokens from nothing, and shows what a year of the economy's rules comes to.

The real rules decide (`services.wallet.economy` and `ledger`); whether they kept what they declare is judged by
`promises`, which reads the journal alone and was written from the declarations.
"""
